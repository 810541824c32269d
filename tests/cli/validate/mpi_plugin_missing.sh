# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/mixtral out --ep 2 --quiet
moe-convert validate out --source fx/mixtral --mpi --plugin ./none.so
