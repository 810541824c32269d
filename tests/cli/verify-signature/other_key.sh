# SPDX-License-Identifier: Apache-2.0
cp -r fx/../signatures s
moe-convert verify-signature s/model --key s/p521.pub --signature s/p256.sig
