# SPDX-License-Identifier: Apache-2.0
[ -c /dev/full ] || exit 77
moe-convert inspect --json fx/mixtral --quiet >/dev/full
