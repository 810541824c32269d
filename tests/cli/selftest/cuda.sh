# SPDX-License-Identifier: Apache-2.0
moe-convert selftest --device cuda --plugin ./none.so
