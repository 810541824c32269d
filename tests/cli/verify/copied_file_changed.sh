# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe out --ep 2 --quiet
echo >>out/config.json
moe-convert verify out >found
code=$?
grep copied-file found | head -n 1
exit $code
