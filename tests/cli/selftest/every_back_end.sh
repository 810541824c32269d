# SPDX-License-Identifier: Apache-2.0
# How many there are depends on the CPU; what they come to does not.
moe-convert selftest --quiet
moe-convert selftest --quiet --threads 1 --vectors fx/../vectors
