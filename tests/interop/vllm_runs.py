# SPDX-License-Identifier: Apache-2.0
"""The real vLLM over our loader, on the CPU.

usage: vllm_runs.py FIXTURES WORK MOE_CONVERT [--ep2]

Every fixture that vLLM loads goes through it three times: by its own loader
(auto), by `moec` from the Hugging Face files, by `moec` from a conversion.
Log-probabilities of every position and the digest of every parameter must be
equal bit for bit. --ep2: two ranks, then two with redundant experts placed
differently in each layer (test_only/ lets the CPU do that): without redundant
ones bit for bit as vLLM's own loader, all within 4e-6 of transformers, and the
same without telling vLLM where the experts are must be far off. Prints a table; exits 1 where one differs.
"""
import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback

os.environ.update({
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"})
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

EP1 = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "glm4_moe", "gpt_oss")
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 97, 93, 23, 84, 62, 64, 33, 38]


def digests(worker):
    import torch
    return {name: hashlib.sha256(
        p.detach().contiguous().view(torch.uint8).reshape(-1).numpy()
        .tobytes()).hexdigest()[:16]
        for name, p in worker.model_runner.model.named_parameters()}


def run(job):
    """One engine, from start to the log-probabilities of a prompt."""
    from vllm import LLM, SamplingParams
    with open(os.path.join(job["model"], "config.json")) as f:
        vocab = json.load(f)["vocab_size"]
    prompt = [t % vocab for t in PROMPT]
    began = time.perf_counter()
    llm = LLM(model=job["model"], skip_tokenizer_init=True, dtype="float32",
              enforce_eager=True, max_model_len=64, max_num_seqs=4,
              max_num_batched_tokens=64, seed=0, max_logprobs=-1,
              enable_prefix_caching=False, disable_log_stats=True,
              load_format=job["format"],
              model_loader_extra_config=job.get("extra", {}),
              **job.get("more", {}))
    started = time.perf_counter() - began
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True,
                            detokenize=False, prompt_logprobs=-1, logprobs=1)
    r = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0]
    return {"seconds": round(started, 2),
            "tokens": list(r.outputs[0].token_ids),
            "logprobs": [[d[t].logprob for t in range(vocab)]
                         for d in r.prompt_logprobs[1:]],
            "digests": llm.collective_rpc(digests)}


def forked(job):
    """`run` in a child of a process that has imported vllm already."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            answer = run(job)
        except BaseException as e:
            answer = {"error": "".join(
                traceback.format_exception_only(type(e), e)).strip()}
        with os.fdopen(write, "w") as f:
            json.dump(answer, f)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as f:
        text = f.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else {"error": "the engine died"}


def fresh(job, **env):
    """`run` in a process of its own: for several ranks."""
    p = subprocess.run([sys.executable, __file__, "--one", json.dumps(job)],
                       capture_output=True, text=True, timeout=900,
                       env={**os.environ, **env,
                            "VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
    for line in p.stdout.splitlines():
        if line.startswith("ANSWER "):
            return json.loads(line[7:])
    said = [x for x in p.stderr.splitlines() if "rror" in x]
    return {"error": (said or ["the engine died"])[-1]}


def convert(program, source, out, *options):
    if not os.path.isdir(out):
        subprocess.run([program, "convert", source, out, "--quiet", *options],
                       check=True, stderr=subprocess.DEVNULL)
    return out


def compare(a, b):
    if "error" in a or "error" in b:
        return False, (a.get("error") or b.get("error"))[-200:]
    same = a["logprobs"] == b["logprobs"] and a["tokens"] == b["tokens"]
    other = [n for x, y in zip(a["digests"], b["digests"])
             for n in set(x) | set(y) if x.get(n) != y.get(n)]
    return same and not other, (
        f"log-probabilities {'equal' if same else 'DIFFER'}, "
        f"{sum(map(len, a['digests']))} parameters, {len(other)} differ "
        f"{other[:3] if other else ''}")


def one_rank(args):
    ok = True
    for name in EP1:
        model = os.path.join(args.fixtures, name)
        auto = forked({"model": model, "format": "auto"})
        for what, job in (
                ("HF", {"model": model, "format": "moec"}),
                ("converted", {"model": convert(
                    args.program, model, os.path.join(args.work, name + "-1"),
                    "--ep", "1"), "format": "moec"})):
            good, text = compare(auto, forked(job))
            ok &= good
            print(f"| {name} | EP 1, {what} | {'ok' if good else 'BAD'} | "
                  f"{text} |", flush=True)
    return ok


def damaged(work, directory, name, how=None):
    """A copy without that file, with it cut, or with a bit flipped there."""
    out = os.path.join(work, "damaged-" + name)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(directory, out)
    path = os.path.join(out, name)
    if how is None:
        os.remove(path)
    elif how == "cut":
        os.truncate(path, os.path.getsize(path) - 1000)
    else:
        with open(path, "r+b") as f:
            f.seek(how, os.SEEK_END)
            byte = f.read(1)[0]
            f.seek(how, os.SEEK_END)
            f.write(bytes([byte ^ 1]))
    return out


def refusals(args):
    """What must end the engine's start with our sentence."""
    ok = True
    model = os.path.join(args.fixtures, "qwen3_moe")
    rows = os.path.join(args.work, "rows.json")
    with open(rows, "w") as f:
        json.dump([[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]] * 3, f)
    two = convert(args.program, model, os.path.join(args.work, "two"),
                  "--ep", "2")
    one = convert(args.program, model, os.path.join(args.work, "one"),
                  "--ep", "1")
    for what, job, words in (
            ("unknown key", {"model": model, "extra": {"verfy": "none"}},
             "verfy"),
            ("a placement without EPLB",
             {"model": model, "extra": {"placement": rows}},
             "--enable-eplb"),
            ("a conversion for two ranks", {"model": two},
             "converted for 2 ranks"),
            ("a placement that is not there",
             {"model": model, "extra": {"placement": rows + ".gone"}},
             "gone: No such file"),
            ("a digest nobody knows",
             {"model": model, "extra": {"verify": "md5"}}, "sha256"),
            ("a conversion without its manifest",
             {"model": damaged(args.work, two, "manifest.json")}, "MOE-M01"),
            ("a flipped bit in a conversion", {"model": damaged(
                args.work, one,
                "experts-rank-00000-of-00001-part-00001.safetensors", -100)},
             "must have"),
            ("a shard that is cut", {"model": damaged(
                args.work, model, "model-00002-of-00003.safetensors", "cut")},
             "MOE-")):
        answer = forked({"format": "moec", **job})
        good = words in answer.get("error", "")
        ok &= good and "error" in answer
        print(f"| refusal | {what} | {'ok' if good else 'BAD'} | "
              f"{answer.get('error', 'it started')[-160:]} |", flush=True)
    return ok


def transformers_logprobs(path):
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    m = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32).eval()
    prompt = [t % m.config.vocab_size for t in PROMPT]
    with torch.no_grad():
        return m(torch.tensor([prompt])).logits[0].float().log_softmax(
            -1).tolist()


def two_ranks(args):
    model = os.path.join(args.fixtures, "qwen3_moe")
    want = transformers_logprobs(model)
    rows = [[0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 9, 5],
            [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 3, 3],
            [1, 1, 0, 2, 4, 3, 9, 7, 8, 6, 5, 2]]
    placement = os.path.join(args.work, "placement.json")
    with open(placement, "w") as f:
        json.dump({"physical_to_logical_map": rows}, f)
    ep = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
    eplb = {**ep, "enable_eplb": True, "eplb_config": {
        "num_redundant_experts": 2, "use_async": False,
        "communicator": "torch_gloo"}}
    converted = convert(args.program, model, os.path.join(args.work, "eplb"),
                        "--ep", "2", "--placement", placement)
    extra = {"placement": placement}
    patched = {"MOEC_TEST_CPU_EP": "1", "MOEC_TEST_CPU_EPLB": "1"}
    ok, text = compare(*(fresh({"format": f, "model": model, "more": ep},
                               **patched) for f in ("auto", "moec")))
    print(f"| qwen3_moe | EP 2, HF, beside auto | {'ok' if ok else 'BAD'} | "
          f"{text} |", flush=True)
    for what, job, env, near in (
            ("EP 2, HF", {"model": model, "more": ep}, {}, True),
            ("EP 2, 2 redundant, own placement, HF",
             {"model": model, "more": eplb, "extra": extra}, {}, True),
            ("EP 2, 2 redundant, own placement, converted",
             {"model": converted, "more": eplb}, {}, True),
            ("the same, not published",
             {"model": model, "more": eplb, "extra": extra},
             {"MOEC_TEST_NO_PUBLISH": "1"}, False)):
        answer = fresh({"format": "moec", **job}, **patched, **env)
        if "error" in answer:
            ok = False
            print(f"| qwen3_moe | {what} | BAD | {answer['error'][-200:]} |",
                  flush=True)
            continue
        # vLLM's first row is of the second position
        far = max(abs(x - y) for got, ref in zip(answer["logprobs"], want)
                  for x, y in zip(got, ref))
        good = far <= 4e-6 if near else far > 0.1
        ok &= good
        print(f"| qwen3_moe | {what} | {'ok' if good else 'BAD'} | greatest "
              f"difference to transformers {far:.2g} |", flush=True)
    return ok


def main():
    if sys.argv[1] == "--one":
        print("ANSWER " + json.dumps(run(json.loads(sys.argv[2]))))
        return 0
    p = argparse.ArgumentParser()
    p.add_argument("fixtures")
    p.add_argument("work")
    p.add_argument("program")
    p.add_argument("--ep2", action="store_true")
    args = p.parse_args()
    os.makedirs(args.work, exist_ok=True)
    print("| fixture | run | | |\n|---|---|---|---|", flush=True)
    if args.ep2:
        return 0 if two_ranks(args) else 1
    import vllm  # noqa: F401  once, for all children
    return 0 if one_rank(args) & refusals(args) else 1


if __name__ == "__main__":
    sys.exit(main())
