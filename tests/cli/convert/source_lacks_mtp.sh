# SPDX-License-Identifier: Apache-2.0
# What a conversion left out cannot come out of it; what it has, can.
moe-convert convert fx/deepseek_v3 store --shard-by expert --no-mtp --quiet
moe-convert convert store out --ep 2 --no-mtp --quiet || echo "exit $?"
moe-convert convert store more --ep 2
code=$?
ls
exit $code
