# SPDX-License-Identifier: Apache-2.0
row="[0, 1, 2, 3, 4, 5, 6, 7, 0, 4]"
echo "{\"physical_to_logical_map\": [$row, $row, $row]}" >p.json
moe-convert plan fx/mixtral --ep 2 --placement p.json --redundant 4
