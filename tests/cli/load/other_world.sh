# SPDX-License-Identifier: Apache-2.0
# Rank files are of one world: the loader says which, and does not guess.
moe-convert convert fx/mixtral out --ep 4 --quiet
moe-convert load out --ep 2 --rank 1
