# SPDX-License-Identifier: Apache-2.0
# Options may stand before or after paths, and -- ends them.
mkdir ./--ep
cp fx/mixtral/* ./--ep
moe-convert plan --ep 2 --json fx/mixtral >1
moe-convert plan fx/mixtral --json --ep=2 >2
POSIXLY_CORRECT=1 moe-convert plan fx/mixtral --json --ep 2 >3
moe-convert plan --json --ep 2 -- --ep >4
cmp 1 2 && cmp 1 3 && cmp 1 4
