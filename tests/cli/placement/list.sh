# SPDX-License-Identifier: Apache-2.0
# The command that has commands of its own: its list, and words it lacks.
moe-convert placement
[ $? -eq 2 ] || exit 99
moe-convert placement chek x
[ $? -eq 2 ] || exit 99
moe-convert placement --json
[ $? -eq 2 ] || exit 99
moe-convert placement --help
