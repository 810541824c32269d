# SPDX-License-Identifier: Apache-2.0
mkdir out
moe-convert convert fx/olmoe out --ep 4 --dry-run
