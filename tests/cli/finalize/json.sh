# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/mixtral out --ep 2 --ranks 1 --json --quiet
moe-convert finalize out --json
moe-convert convert fx/mixtral out --ep 2 --ranks 0 --json --quiet
moe-convert finalize out --json
moe-convert verify out | tail -1
