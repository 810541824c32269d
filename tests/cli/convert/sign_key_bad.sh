# SPDX-License-Identifier: Apache-2.0
echo no >key.pem
moe-convert convert fx/olmoe out --ep 2 --quiet --sign key.pem
code=$?
ls -d out* 2>/dev/null
exit $code
