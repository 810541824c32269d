# SPDX-License-Identifier: Apache-2.0
# Wrong words: exit 2; counts without rows, or no file: exit 3.
try() {
    moe-convert stats "$@" -q
    echo "exit $?" >&2
}
echo '[[1, 2, 3, 4]]' >counts.json
try counts.json --ep 0
try counts.json --ep 4 --nodes 3
try counts.json --ep 2 --batch 0
try counts.json --ep 2 --placement p.json --redundant 2
try counts.json --ep 2 --waterfill
try counts.json --ep 2 --shared 1
try counts.json --ep 3
try counts.json --ep 2 --counts c.json
try absent.json --ep 2
