# SPDX-License-Identifier: Apache-2.0
cp -r fx/../signatures s
moe-convert verify-signature s/model --key s/p256.pub --json --quiet
