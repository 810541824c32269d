# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe out --ep 4 --json
