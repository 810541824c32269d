# SPDX-License-Identifier: Apache-2.0
moe-convert check fx/mixtral --level kernels --quiet
