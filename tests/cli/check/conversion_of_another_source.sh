# SPDX-License-Identifier: Apache-2.0
# The source that is given is compared with, at level digests too.
moe-convert convert fx/deepseek_v3_fp8 out --ep 2 --quiet
moe-convert check out --source fx/deepseek_v3_fp8_ragged
