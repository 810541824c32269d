# SPDX-License-Identifier: Apache-2.0
# Options may stand before or after paths, and -- ends them.
mkdir ./--ep
cp fx/mixtral/* ./--ep
moe-convert plan --ep 2 --json fx/mixtral >a
moe-convert plan fx/mixtral --json --ep=2 >b
POSIXLY_CORRECT=1 moe-convert plan fx/mixtral --json --ep 2 >c
moe-convert plan --json --ep 2 -- --ep >d
cmp a b && cmp a c && cmp a d
