# SPDX-License-Identifier: Apache-2.0
# The digest of each whole shard, from the source and from a conversion.
moec() {
    moe-convert "$@" --quiet || echo "$1: $?"
}
moec convert fx/mixtral out --ep 2 --hash-source
moec convert out again --ep 2 --hash-source
cmp out/manifest.json again/manifest.json
(cd fx/mixtral && sha256sum *.safetensors) | while read -r sum name; do
    case $name in
    golden.*) continue ;;
    esac
    grep -c "\"name\": \"$name\".*\"sha256\": \"$sum\"" out/manifest.json
done
moe-convert verify out | tail -1
moe-convert convert fx/mixtral many --ep 2 --hash-source --ranks 0 --quiet
moe-convert convert fx/mixtral many --ep 2 --ranks 1 2>&1
moe-convert convert fx/mixtral many --ep 2 --hash-source --ranks 1 --quiet
moec finalize many
cmp out/manifest.json many/manifest.json
