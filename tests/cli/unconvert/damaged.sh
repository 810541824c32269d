# SPDX-License-Identifier: Apache-2.0
# Bytes that have not their digest: integrity, not a wrong source.
[ -n "$PYTHON" ] || exit 77
moe-convert convert fx/olmoe out --ep 2 --quiet
moe-convert explain out --layer 1 --expert 0 --json >e.json
"$PYTHON" -c "
import json
s = json.load(open(\"e.json\"))[\"slots\"][0]
f = open(\"out/\" + s[\"file\"], \"r+b\")
f.seek(s[\"offset\"])
b = f.read(1)
f.seek(s[\"offset\"])
f.write(bytes([b[0] ^ 1]))"
moe-convert unconvert out back --quiet
code=$?
ls
exit $code
