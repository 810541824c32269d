# SPDX-License-Identifier: Apache-2.0
# One rank: is there a layout at all?
moe-convert check fx/mixtral --quiet
