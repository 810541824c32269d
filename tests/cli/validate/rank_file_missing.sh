# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/mixtral out --ep 2 --quiet
rm out/experts-rank-00001-of-00002-part-00001.safetensors
moe-convert validate out --source fx/mixtral
