# SPDX-License-Identifier: Apache-2.0
cp -r fx/../signatures s
: >"s/model/$(printf 'a\033[2J\nb')"
moe-convert verify-signature s/model --key s/p256.pub --signature s/p256.sig
