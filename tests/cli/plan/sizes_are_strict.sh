# SPDX-License-Identifier: Apache-2.0
for v in 0 1MB 1.5GiB 16777216TiB -1 KiB 1kib 1KiB 64MiB 2GiB 1TiB 4096; do
    moe-convert plan fx/mixtral --ep 2 --quiet --max-part-bytes "$v" >/dev/null
    echo "$v: $?"
done
