# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe out --ep 3
code=$?
ls
exit $code
