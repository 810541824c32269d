# SPDX-License-Identifier: Apache-2.0
# Of the contract, but not built: it does not exist.
moe-convert placement import x
