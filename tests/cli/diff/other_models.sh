# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/mixtral one --ep 2 -q 2>/dev/null
moe-convert convert fx/olmoe two --ep 2 -q 2>/dev/null
moe-convert diff one two | tail -n 1
moe-convert diff fx/mixtral one
moe-convert diff one fx/olmoe | grep -c "only in"
