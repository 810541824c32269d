# SPDX-License-Identifier: Apache-2.0
# Not an error but a finding: the other files are still looked at.
moe-convert convert fx/olmoe out --ep 2 --quiet
rm out/experts-rank-00001-of-00002-part-00001.safetensors
moe-convert verify out >found
code=$?
grep data-file found
tail -n 1 found
exit $code
