# SPDX-License-Identifier: Apache-2.0
cp -r fx/../signatures s
cp s/chain.sig s/model/model.sig
moe-convert verify-signature s/model --certificate-chain s/root.crt --json
