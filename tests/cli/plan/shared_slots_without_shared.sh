# SPDX-License-Identifier: Apache-2.0
# Nothing to fuse is not the same as something that cannot be fused.
moe-convert plan fx/mixtral --ep 2 --shared-slots per-rank
