# SPDX-License-Identifier: Apache-2.0
# A file that is well formed and still no recording to replay; its request's
# name does not steer the terminal.
[ -n "$PYTHON" ] || exit 77
"$PYTHON" - <<'END'
import json
import struct

tensors = [("request", "I64", [2], struct.pack("<2q", 0, 3)),
           ("gap", "I64", [1, 3], struct.pack("<3q", 0, 3, 4)),
           ("position", "I32", [3], struct.pack("<3i", 0, 2, 5)),
           ("sample", "I32", [1], struct.pack("<i", 0)),
           ("topk_ids", "U8", [3, 1, 2], bytes([1, 1, 2, 3, 0, 255]))]
header = {"__metadata__": {
    "format": "moec.routes/1", "n_experts": "4", "n_zero": "0",
    "n_decoder": "1", "layers": "0", "fingerprint": "",
    "request_ids": json.dumps(["q\u001b[31m"])}}
data = b""
for name, dtype, shape, raw in tensors:
    header[name] = {"dtype": dtype, "shape": shape,
                    "data_offsets": [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header).encode()
with open("r.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text + data)
END
exec moe-convert routes check r.safetensors
