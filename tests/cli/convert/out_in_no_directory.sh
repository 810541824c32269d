# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe absent/out --ep 4
