# SPDX-License-Identifier: Apache-2.0
# org/name is looked up in the cache that the environment names, in order.
rev=0123456789abcdef0123456789abcdef01234567
repo=hub/models--org--tiny
mkdir -p $repo/snapshots/$rev $repo/refs
printf %s $rev >$repo/refs/main
cp fx/mixtral/config.json fx/mixtral/model* $repo/snapshots/$rev
for how in HF_HUB_CACHE=$PWD/hub HF_HOME=$PWD "HF_HUB_CACHE=$PWD/hub HF_HOME=/nowhere"; do
    env $how moe-convert inspect org/tiny --quiet | head -n 1
done
HF_HOME=$PWD moe-convert inspect org/tiny@$rev --quiet | head -n 1
HF_HOME=/nowhere moe-convert inspect org/tiny
