# SPDX-License-Identifier: Apache-2.0
# One byte of one expert in a copy of the source: the digests say which.
cp -rL fx/mixtral copy && chmod -R u+w copy
f=copy/$(sed -n 's/.*experts.5.w2.weight": "\([^"]*\)".*/\1/p' \
    copy/model.safetensors.index.json | tail -n 1)
[ -n "$PYTHON" ] || exit 77
"$PYTHON" - "$f" <<'END'
import json, struct, sys
f = open(sys.argv[1], "r+b")
n = struct.unpack("<Q", f.read(8))[0]
head = json.loads(f.read(n))
name = sorted(k for k in head if k.endswith("experts.5.w2.weight"))[-1]
print(name)
f.seek(8 + n + head[name]["data_offsets"][0])
f.write(b"\x55\x55")
END
moe-convert convert fx/mixtral one --ep 2 -q 2>/dev/null
moe-convert convert copy two --ep 4 -q 2>/dev/null
moe-convert diff one two | grep -v -e "^option" -e "^rank" -e "^ *[0-9]"
moe-convert diff fx/mixtral copy
echo $?
