# SPDX-License-Identifier: Apache-2.0
# One map in every form: what one engine wrote comes out the same through any
# other, and byte for byte where it went through SGLang's.
seeds=$(dirname "$0")/../../../fixtures/corpora/placement
src="--source fx/deepseek_v3 --ep 4 -q"
moe-convert placement import "$seeds/sglang.json" want.json $src || exit 90
for f in sglang.pt eplb.npz eplb.pt phy2log.npy log2phy.json trtllm.yaml ascend.json; do
    moe-convert placement import "$seeds/$f" "$f.json" $src || exit 91
    cmp want.json "$f.json" || exit 92
done
for form in trtllm vllm-ascend vllm eplb phy2log log2phy; do
    moe-convert placement export want.json "out.$form" --format $form $src || exit 93
    moe-convert placement import "out.$form" "$form.json" $src || exit 94
    cmp want.json "$form.json" || exit 95
done
for form in phy2log log2phy; do
    moe-convert placement export want.json out.npy --format $form --npy --force $src || exit 96
    moe-convert placement import out.npy "$form.back.json" $src || exit 97
    cmp want.json "$form.back.json" || exit 98
done
# convert reads them all.
for f in sglang.pt trtllm.yaml ascend.json eplb.npz; do
    moe-convert plan fx/deepseek_v3 --ep 4 --placement "$seeds/$f" --json -q 2>/dev/null >"$f.plan" || exit 99
    cmp sglang.pt.plan "$f.plan" || exit 99
done
# And a conversion's own.
moe-convert convert fx/deepseek_v3 out --ep 4 --placement want.json -q || exit 89
moe-convert placement export out own.json --format sglang -q || exit 88
cmp want.json own.json
