# SPDX-License-Identifier: Apache-2.0
# A reader that goes away is a failed write, not a death by SIGPIPE.
mkfifo pipe
: <pipe &
exec >pipe
wait
exec moe-convert explain --list
