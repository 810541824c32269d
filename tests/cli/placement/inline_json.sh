# SPDX-License-Identifier: Apache-2.0
# SGLang's option takes JSON as well as a file's name; so do these.
moe-convert placement check '{"physical_to_logical_map": [[0,1,2,3,3,2,1,0]]}' --ep 2 &&
moe-convert placement export '[[0,1,2,3]]' --format trtllm --moe-layers 5-5 || exit 99
moe-convert plan fx/mixtral --ep 2 --placement '[[0,1,2]]' -q
[ $? -eq 3 ]
