# SPDX-License-Identifier: Apache-2.0
cp -r fx/../signatures s
moe-convert verify-signature s/model --key s/p384.pub --signature s/p384.sig &&
    moe-convert verify-signature s/model --signature s/chain.sig \
        --certificate-chain s/root.crt
