# SPDX-License-Identifier: Apache-2.0
# Damage that the manifest cannot know: another model with the same names.
[ -n "$PYTHON" ] || exit 77
moe-convert convert fx/olmoe out --ep 2 --quiet
mkdir src
cp fx/olmoe/config.json fx/olmoe/model* src
"$PYTHON" -c "
import struct
f = open(\"src/model-00002-of-00003.safetensors\", \"r+b\")
n = struct.unpack(\"<Q\", f.read(8))[0]
f.seek(8 + n)
b = f.read(1)
f.seek(8 + n)
f.write(bytes([b[0] ^ 1]))"
moe-convert verify out --source src >found
code=$?
tail -n 1 found
exit $code
