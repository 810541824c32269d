# SPDX-License-Identifier: Apache-2.0
# The files that are there, and no others.
mkdir v
cp fx/../vectors/waterfill.json fx/../vectors/eplb.json v
moe-convert selftest --vectors v --cpu scalar
