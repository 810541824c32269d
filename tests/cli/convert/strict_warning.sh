# SPDX-License-Identifier: Apache-2.0
row="[0, 0, 1, 2, 3, 4, 5, 6, 7, 7]"
echo "{\"physical_to_logical_map\": [$row, $row, $row]}" >p.json
moe-convert convert fx/mixtral out --ep 2 --placement p.json --strict
code=$?
ls
exit $code
