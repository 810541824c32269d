#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The Kubernetes manifests against the published schema, and their commands
# run as the pods would run them.
#
#   sh tests/cluster/kubernetes.sh VENV
#
# VENV is a virtual environment to be made, with kubernetes-validate from the
# package index; 77 where it cannot be had. MOEC_CONVERT: the program.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
program=${MOEC_CONVERT:-$here/../../build/dev/moe-convert}
deploy=$here/../../deploy/kubernetes
venv=$1

"${MOEC_PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install -q --timeout 10 kubernetes-validate==1.37.0 || exit 77
"$venv/bin/kubernetes-validate" --strict "$deploy"/*.yaml
# The schema finds mistakes at all.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
sed 's/onExitCodes/onExitCode/' "$deploy/convert.yaml" >"$scratch/bad.yaml"
if "$venv/bin/kubernetes-validate" --strict "$scratch/bad.yaml" >/dev/null 2>&1
then
    echo "FAIL: a misspelled key passes"
    exit 1
fi

python3 "$here/../cli/make_slice.py" "$scratch/source" 16
"$program" convert "$scratch/source" "$scratch/want" --ep 4 --redundant 4 \
    >/dev/null
"$venv/bin/python" - "$deploy" "$scratch" "$program" <<'END'
import os, subprocess, sys, yaml
deploy, scratch, program = sys.argv[1:]

def pods(name):
    with open(os.path.join(deploy, name)) as f:
        spec = yaml.safe_load(f)["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["moe-convert"]
    (rule,) = [r["onExitCodes"] for r in spec["podFailurePolicy"]["rules"]
               if "onExitCodes" in r]
    assert rule["containerName"] == container["name"]
    assert not set(rule["values"]) & {0, 4, 6}, "what is worth a retry"
    env = {e["name"]: e["value"] for e in container.get("env", ())}
    n = spec.get("completions", 1)
    assert env.get("JOB_COMPLETIONS", "1") == str(n)
    args = [a.replace("/models", scratch) for a in container["args"]]
    for index in range(n):
        yield args, {**env, "JOB_COMPLETION_INDEX": str(index)}

for name in ("convert.yaml", "finalize.yaml"):
    for args, env in pods(name):
        subprocess.run([program] + args, check=True, stdout=subprocess.DEVNULL,
                       env={"PATH": os.environ["PATH"], **env})
END
for path in "$scratch"/want/*; do
    file=${path##*/}
    [ "$file" = provenance.json ] || cmp "$path" "$scratch/converted/$file"
done
echo "ok: manifests fit the schema; their commands give what one process does"
