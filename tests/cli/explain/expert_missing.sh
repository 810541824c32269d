# SPDX-License-Identifier: Apache-2.0
moe-convert explain fx/mixtral --layer 1
