# SPDX-License-Identifier: Apache-2.0
moe-convert plan fx/deepseek_v2 --shard-by expert --redundant 2
echo $?
moe-convert plan fx/deepseek_v2 --shard-by expert --placement p.json
