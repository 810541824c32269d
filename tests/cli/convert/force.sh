# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe out --ep 4 --quiet
moe-convert convert fx/olmoe out --ep 2 --force --quiet && ls out && ls
