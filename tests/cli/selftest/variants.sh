# SPDX-License-Identifier: Apache-2.0
# Variants that no fixture has, against their formulas in float64.
[ -n "$PYTHON" ] || exit 77
mkdir v
"$PYTHON" fx/../../tests/support/make_vectors.py v || exit 77
moe-convert selftest --vectors v --quiet
