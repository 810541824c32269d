# SPDX-License-Identifier: Apache-2.0
# All replicas of an expert move alike: only bytes can be stale.
moe-convert check fx/deepseek_v3 --ep 2 --redundant 2 --mutate replica-stale --quiet
