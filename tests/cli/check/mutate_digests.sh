# SPDX-License-Identifier: Apache-2.0
# Bytes are changed in memory, never in a file.
moe-convert convert fx/deepseek_v3 out --ep 2 --redundant 2 --quiet
sha256sum out/* >before
moe-convert check out --level digests --mutate all --quiet >found
code=$?
sha256sum --quiet -c before || exit 9
grep -e " level " -e "cannot be made" found
exit $code
