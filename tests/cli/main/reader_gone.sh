# SPDX-License-Identifier: Apache-2.0
# A reader that goes away is a failed write, not a death by SIGPIPE.
{
    sleep 0.2
    moe-convert explain --list
    echo $? >code
} | true
while [ ! -s code ]; do sleep 0.05; done
exit "$(cat code)"
