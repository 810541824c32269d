# SPDX-License-Identifier: Apache-2.0
# Nothing unsigned is loaded where a signature is asked for: not another
# manifest.json, not another model under the same signature, not a weight with
# one bit changed, not a directory without signature.
command -v openssl >/dev/null || exit 77
openssl ecparam -name secp384r1 -genkey -noout -out key.pem
openssl ec -in key.pem -pubout -out key.pub 2>/dev/null
load() {
    moe-convert load "$1" --rank 1 --ep 2 --require-signature key.pub --quiet \
        >/dev/null 2>said
    echo "$2: $? $(sed -n 's/^\[\([^]]*\)\].*/\1/p' said | head -n 1)"
}
moe-convert convert fx/olmoe out --ep 2 --quiet --sign key.pem || exit
load out "as signed"
cp -r out m && printf ' ' >>m/manifest.json
load m "manifest.json with a blank more"
moe-convert convert fx/mixtral other --ep 2 --quiet
cp out/model.sig other/
load other "another model"
cp -r out w
file=$(ls w/experts-rank-00001-*)
old=$(od -An -tu1 -j 9000 -N 1 "$file" | tr -d ' ')
# shellcheck disable=SC2059 # the format is the byte
printf "\\$(printf %o $((old ^ 1)))" |
    dd of="$file" bs=1 seek=9000 conv=notrunc status=none
load w "one bit of a weight"
rm w/model.sig
load w "no signature"
