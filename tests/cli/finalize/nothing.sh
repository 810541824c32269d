# SPDX-License-Identifier: Apache-2.0
# Nobody has converted anything; and a conversion by one process is no job.
moe-convert finalize out
echo "$?"
moe-convert convert fx/mixtral out --ep 2 --quiet
moe-convert finalize out
mkdir out.partial
moe-convert finalize out --force
echo "$?"
ls -A out.partial
