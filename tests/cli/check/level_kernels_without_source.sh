# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/mixtral out --ep 2 --quiet
moe-convert check out --level kernels
