# SPDX-License-Identifier: Apache-2.0
"""How long vLLM's own loader and ours take over the same checkpoint.

usage: load_time.py CHECKPOINT [CONVERTED [RUNS]]     (in the engines' python)

The time is that of load_weights alone, in a fresh engine each time; cold: the
files evicted just before; warm: read in just before. In turn, so that a busy
machine is busy for both. CONVERTED: a conversion of it with --ep 1. Prints a
table of minima; needs the patches of test_only/ installed.
"""
import json
import os
import subprocess
import sys
import tempfile

ENGINE = """
import json, sys
from vllm import LLM
a = json.loads(sys.argv[1])
LLM(model=a["model"], skip_tokenizer_init=True, dtype="bfloat16",
    enforce_eager=True, max_model_len=64, max_num_seqs=4,
    max_num_batched_tokens=64, enable_prefix_caching=False,
    disable_log_stats=True, load_format=a["format"])
"""


def files(path):
    return [os.path.join(path, n) for n in sorted(os.listdir(path))
            if n.endswith(".safetensors")]


def evict(path):
    os.sync()
    for name in files(path):
        fd = os.open(name, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def warm(path):
    for name in files(path):
        with open(name, "rb", buffering=0) as f:
            while f.read(8 << 20):
                pass


def run(model, load_format):
    with tempfile.NamedTemporaryFile("r") as times:
        p = subprocess.run(
            [sys.executable, "-c", ENGINE,
             json.dumps({"model": model, "format": load_format})],
            capture_output=True, text=True, env={
                **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
                "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "MOEC_TEST_TIMES": times.name})
        said = times.read().split()
    if len(said) < 2:
        sys.exit(f"{load_format}: {p.stderr[-800:]}")
    return float(said[1])


def main():
    source = sys.argv[1]
    converted = sys.argv[2] if len(sys.argv) > 2 else None
    runs = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    what = [("vLLM's own", source, "auto"), ("moec, HF", source, "moec")]
    if converted:
        what.append(("moec, converted, XXH3", converted, "moec"))
    got = {}
    for _ in range(runs):
        for state, prepare in (("cold", evict), ("warm", warm)):
            for name, model, load_format in what:
                prepare(model)
                got.setdefault((name, state), []).append(
                    run(model, load_format))
                print(name, state, got[name, state][-1], file=sys.stderr,
                      flush=True)
    print("| load path | cold s | of vLLM's | warm s | of vLLM's |\n"
          "|---|---|---|---|---|")
    for name, _, _ in what:
        cells = []
        for state in ("cold", "warm"):
            t, ref = min(got[name, state]), min(got["vLLM's own", state])
            cells += [f"{t:.2f}", f"{t / ref:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
