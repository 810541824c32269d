# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/mixtral out --shard-by expert --quiet
moe-convert load out --ep 4 --rank 3 --redundant 4 --verify sha256 --json |
    sed 's/"bytes_read": [0-9]*/"bytes_read": 0/' # direct reads round it up
