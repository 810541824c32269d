# SPDX-License-Identifier: Apache-2.0
# Every combination of ranks and redundant slots; one does not divide.
moe-convert check fx/deepseek_v3 --matrix 2,4:0,2,4 --quiet
