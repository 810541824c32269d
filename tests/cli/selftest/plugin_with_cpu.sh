# SPDX-License-Identifier: Apache-2.0
moe-convert selftest --plugin ./none.so
