# SPDX-License-Identifier: Apache-2.0
# Shared experts that are stored once come into every rank's rows all the same:
# as many bytes in memory as with the default.
for store in rank common; do
    moe-convert convert fx/deepseek_v2 $store --ep 2 --shared-store $store --quiet
    moe-convert load $store --rank 1 --json | grep -e bytes_in_memory -e '"verified"'
done
