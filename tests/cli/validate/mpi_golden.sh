# SPDX-License-Identifier: Apache-2.0
moe-convert validate out --source fx/mixtral --mpi --golden golden.safetensors
