# SPDX-License-Identifier: Apache-2.0
# Another process works on the same output.
command -v flock >/dev/null || exit 77
mkdir out.partial
flock out.partial moe-convert convert fx/olmoe out --ep 4
