# SPDX-License-Identifier: Apache-2.0
# The sentence says how much it takes, which is another number elsewhere.
moe-convert load fx/qwen3_moe --ep 2 --memory 1KiB 2>err
code=$?
sed 's/takes [0-9]* bytes/takes N bytes/' err
exit $code
