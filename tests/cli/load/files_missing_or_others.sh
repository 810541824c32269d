# SPDX-License-Identifier: Apache-2.0
# Each refusal has its rule: what is missing is malformed input (3), bytes that
# are others than the digested ones are damage (5).
rank=experts-rank-00000-of-00002-part-00001.safetensors
moe-convert convert fx/mixtral good --ep 2 --quiet
try() {
    moe-convert load bad --rank 0 --quiet
    echo "exit $?"
    chmod -R u+w bad
    rm -r bad
    cp -r good bad
}
cp -r good bad
for f in $rank config.json slots.bin sources.bin manifest.json; do
    rm bad/$f
    try
done
for f in $rank config.json slots.bin sources.bin; do
    echo >>bad/$f
    try
done
printf '\377' | dd of=bad/slots.bin bs=1 conv=notrunc seek=100 2>/dev/null
try
