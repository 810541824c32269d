# SPDX-License-Identifier: Apache-2.0
moe-convert diff --help
