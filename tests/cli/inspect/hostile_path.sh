# SPDX-License-Identifier: Apache-2.0
# Escape sequences and bytes that are no UTF-8 reach neither the terminal nor
# the document as they are.
name=$(printf 'a\033[31m\302\233\377"\\b')
moe-convert inspect "$name" --json
code=$?
moe-convert verify "$name" --json >/dev/null
moe-convert explain "$name"
moe-convert plan "$name" --"$name"
exit $code
