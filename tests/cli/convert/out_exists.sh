# SPDX-License-Identifier: Apache-2.0
mkdir out
echo kept >out/file
moe-convert convert fx/olmoe out --ep 4
code=$?
cat out/file
exit $code
