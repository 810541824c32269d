# SPDX-License-Identifier: Apache-2.0
cp -r fx/../signatures s
echo no >no.sig
moe-convert verify-signature s/model --key s/p521.pub --signature no.sig
