# SPDX-License-Identifier: Apache-2.0
mkdir empty
moe-convert selftest --vectors empty
echo "exit $?"
moe-convert selftest --vectors none
