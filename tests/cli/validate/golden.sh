# SPDX-License-Identifier: Apache-2.0
# An independent reference, with the tolerance that lies beside it.
moe-convert convert fx/gpt_oss out --ep 2 --quiet
moe-convert validate out --source fx/gpt_oss \
    --golden fx/gpt_oss/golden.safetensors
