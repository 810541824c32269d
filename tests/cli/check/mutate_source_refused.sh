# SPDX-License-Identifier: Apache-2.0
# What cannot be opened is refused as everywhere, in one document.
moe-convert check fx/mixtral --ep 3 --mutate swap-slots --json --quiet
