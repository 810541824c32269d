# SPDX-License-Identifier: Apache-2.0
moe-convert plan fx/mixtral
