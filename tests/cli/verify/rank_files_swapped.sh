# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe out --ep 2 --quiet
cd out || exit 1
mv experts-rank-00000-of-00002-part-00001.safetensors x
mv experts-rank-00001-of-00002-part-00001.safetensors experts-rank-00000-of-00002-part-00001.safetensors
mv x experts-rank-00001-of-00002-part-00001.safetensors
cd .. || exit 1
moe-convert verify out >found
code=$?
grep -c "same-bytes\|data-header" found | sed "s/^[1-9][0-9]*/found/"
exit $code
