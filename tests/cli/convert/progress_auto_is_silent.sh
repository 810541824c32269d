# SPDX-License-Identifier: Apache-2.0
# stderr is no terminal.
moe-convert convert fx/olmoe out --ep 4 >/dev/null
