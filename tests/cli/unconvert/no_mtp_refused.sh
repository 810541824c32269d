# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/deepseek_v3 out --ep 4 --no-mtp --quiet
moe-convert unconvert out back --dry-run
moe-convert unconvert out back
code=$?
ls
exit $code
