# SPDX-License-Identifier: Apache-2.0
cp -r fx/../signatures s
echo >>s/model/d/b
moe-convert verify-signature s/model --key s/p256.pub --signature s/p256.sig
