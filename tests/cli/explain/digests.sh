# SPDX-License-Identifier: Apache-2.0
# Digests against the fixture's own.
[ -n "$PYTHON" ] || exit 77
moe-convert explain fx/glm4_moe --layer 2 --expert 7 --json >e.json
"$PYTHON" - <<'EOF'
import json
got = {s["tensor"].split(".")[-2]: s["sha256"] for s in json.load(open("e.json"))["source"]}
truth = json.load(open("fx/glm4_moe/experts.json"))["layers"]["2"]["experts"][7]
want = {k + "_proj": truth[k] for k in ("gate", "up", "down")}
assert got == want, (got, want)
EOF
