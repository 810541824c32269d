# SPDX-License-Identifier: Apache-2.0
# A warning: exit 0, and 1 with --strict.
row="[0, 0, 1, 2, 3, 4, 5, 6, 7, 7]"
echo "{\"physical_to_logical_map\": [$row, $row, $row]}" >p.json
moe-convert plan fx/mixtral --ep 2 --placement p.json >/dev/null
echo $?
moe-convert plan fx/mixtral --ep 2 --placement p.json --strict --json --quiet
