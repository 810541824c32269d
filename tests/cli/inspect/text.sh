# SPDX-License-Identifier: Apache-2.0
for d in fx/*; do
    echo "== ${d#fx/}"
    moe-convert inspect "$d" --quiet || exit
done
