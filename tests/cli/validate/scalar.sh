# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/llama4 out --ep 2 --w13-order up-gate --quiet
moe-convert validate out --source fx/llama4 --cpu scalar --tokens 5 --seed 7
