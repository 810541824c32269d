# SPDX-License-Identifier: Apache-2.0
moe-convert check fx/mixtral --report sarif
moe-convert check fx/mixtral --report pdf=x
moe-convert verify fx/mixtral --report json=x
