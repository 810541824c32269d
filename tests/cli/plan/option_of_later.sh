# SPDX-License-Identifier: Apache-2.0
# Options of commands to come are unknown, not ignored.
for o in --format --cpu; do
    moe-convert plan fx/mixtral --ep 2 $o x
    echo "$o: $?"
done
