#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""peers.py [--cpu]: the router and Expert Choice as a user writes them, on the same card.

JSON lines of gpu_table.py's kind: torch eager, torch.compile, a CUDA graph of the eager form, and a Triton
kernel a row. Shapes are those of bench_device.cu, and inputs rotate over sets as there. Eager is timed as
it is used, launch by launch; the others in a graph. --cpu checks at small sizes that the forms agree, without
timing (Triton is left out).
"""
import json
import math
import sys
import time

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

CPU = "--cpu" in sys.argv[1:]
DEVICE = "cpu" if CPU else "cuda"
PLAIN = (128, 8192, 65536)
GROUPED = (128, 65536)
CHOICE = ((128, 64), (4096, 256), (65536, 256))
LAYERS = (1, 32, 128, 256)
K = 8


def say(who, kernel, shape, **more):
    print(json.dumps({"who": who, "kernel": kernel, "shape": shape, **more}), flush=True)


# ------------------------------------------------------------ the forms

def topk(x, bias):
    w, ids = torch.topk(torch.softmax(x, -1, dtype=torch.float32), K, dim=-1)
    return w / w.sum(-1, keepdim=True), ids.int()


def grouped(x, bias):
    """DeepSeek-V3's router as its own modelling code has it: 8 groups, 4 kept."""
    T, E = x.shape
    s = x.sigmoid()
    choice = s + bias
    group = choice.view(T, 8, E // 8).topk(2, dim=-1)[0].sum(-1)
    kept = torch.topk(group, 4, dim=-1, sorted=False)[1]
    mask = torch.zeros_like(group).scatter_(1, kept, 1)
    mask = mask.unsqueeze(-1).expand(T, 8, E // 8).reshape(T, E)
    ids = torch.topk(choice.masked_fill(~mask.bool(), float("-inf")), K, dim=-1, sorted=False)[1]
    w = s.gather(1, ids)
    return w / (w.sum(-1, keepdim=True) + 1e-20) * 2.5, ids.int()


def expert_choice(x, bias):
    """Every expert takes its best C tokens, every token its best K of the experts that took it, and of the
    others what is missing."""
    T, E = x.shape
    p = torch.softmax(x, -1, dtype=torch.float32)
    C = min(T, max(K, math.ceil(T * K * (1.5 if T < 32 else 1.1) / E)))
    taken = torch.zeros_like(p, dtype=torch.bool)
    taken.scatter_(0, torch.topk(p, C, dim=0)[1], True)
    # Probabilities are at most 1: what was taken stands before all else.
    ids = torch.topk(torch.where(taken, p + 2.0, p), K, dim=-1)[1]
    w = p.gather(1, ids)
    return w / w.sum(-1, keepdim=True), ids.int()


if triton:
    @triton.jit
    def topk_kernel(x, w, ids, E: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, BLOCK)
        cols = tl.arange(0, K)
        v = tl.load(x + row * E + at, mask=at < E, other=float("-inf"))
        m = tl.max(v, 0)
        chosen = tl.zeros([K], tl.float32)
        which = tl.zeros([K], tl.int32)
        for k in tl.static_range(K):
            best, i = tl.max(v, 0, return_indices=True)
            chosen = tl.where(cols == k, tl.exp(best - m), chosen)
            which = tl.where(cols == k, i.to(tl.int32), which)
            v = tl.where(at == i, float("-inf"), v)
        tl.store(w + row * K + cols, chosen / tl.sum(chosen, 0))
        tl.store(ids + row * K + cols, which)

    @triton.jit
    def grouped_kernel(x, bias, w, ids, E: tl.constexpr, K: tl.constexpr, G: tl.constexpr, KEEP: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        per: tl.constexpr = E // G
        at = tl.arange(0, G)[:, None] * per + tl.arange(0, per)[None, :]
        groups = tl.arange(0, G)
        cols = tl.arange(0, K)
        s = tl.sigmoid(tl.load(x + row * E + at))
        c = s + tl.load(bias + at)
        first, i = tl.max(c, 1, return_indices=True)
        rest = tl.where(tl.arange(0, per)[None, :] == i[:, None], float("-inf"), c)
        score = first + tl.max(rest, 1)
        kept = tl.zeros([G], tl.int32)
        for k in tl.static_range(KEEP):
            g = tl.argmax(score, 0)
            kept = tl.where(groups == g, 1, kept)
            score = tl.where(groups == g, float("-inf"), score)
        c = tl.where(kept[:, None] != 0, c, float("-inf"))
        c = tl.reshape(c, [E])
        s = tl.reshape(s, [E])
        flat = tl.arange(0, E)
        chosen = tl.zeros([K], tl.float32)
        which = tl.zeros([K], tl.int32)
        for k in tl.static_range(K):
            i = tl.argmax(c, 0)
            chosen = tl.where(cols == k, tl.sum(tl.where(flat == i, s, 0.0), 0), chosen)
            which = tl.where(cols == k, i.to(tl.int32), which)
            c = tl.where(flat == i, float("-inf"), c)
        tl.store(w + row * K + cols, chosen / (tl.sum(chosen, 0) + 1e-20) * 2.5)
        tl.store(ids + row * K + cols, which)


def triton_form(form):
    def call(x, bias):
        T, E = x.shape
        w = torch.empty(T, K, dtype=torch.float32, device=x.device)
        ids = torch.empty(T, K, dtype=torch.int32, device=x.device)
        if form is topk:
            topk_kernel[(T,)](x, w, ids, E, K, triton.next_power_of_2(E), num_warps=1)
        else:
            grouped_kernel[(T,)](x, bias, w, ids, E, K, 8, 4, num_warps=1)
        return w, ids
    return call


# ------------------------------------------------------------- timing

def inputs(T, E, n):
    g = torch.Generator(device=DEVICE).manual_seed(T)
    return [torch.randn(T, E, device=DEVICE, generator=g) for _ in range(n)]


def sets_for(T, E):
    return max(3, min(64, (256 << 20) // (4 * T * E)))


def median_of(replay, calls):
    """Median microseconds a call over replays for about a fifth of a second."""
    took, end = [], None
    for i in range(1000):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        replay()
        b.record()
        b.synchronize()
        if i == 1:
            end = time.monotonic() + 0.2
        if i > 1:
            took.append(a.elapsed_time(b) * 1e3 / calls)
            if len(took) >= 7 and time.monotonic() > end:
                break
    return sorted(took)[len(took) // 2]


def eager_us(call, xs, bias):
    calls = min(len(xs), 60)

    def run():
        for x in xs[:calls]:
            call(x, bias)
    run()
    return median_of(run, calls)


def graph_us(call, xs, bias):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for x in xs[:3]:
            call(x, bias)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x in xs:
            call(x, bias)
    return median_of(graph.replay, len(xs))


def other_rows(a, b):
    """Rows whose sets of ids differ, as ties or rounding may have it."""
    return int((a.sort(-1).values != b.sort(-1).values).any(-1).sum())


def one(kernel, shape, form, T, E, who, n=None):
    if CPU:
        T = min(T, 64)
    xs = inputs(T, E, n or (2 if CPU else sets_for(T, E)))
    bias = torch.linspace(-0.5, 0.5, E, device=DEVICE)
    want = form(xs[0], bias)[1]
    forms = {"torch eager": (form, eager_us), "torch graph": (form, graph_us),
             "torch.compile": (None, graph_us)}
    if triton and form is not expert_choice and not CPU:
        forms["Triton"] = (triton_form(form), graph_us)
    for name in who:
        if name not in forms or (CPU and name != "torch eager"):
            continue
        try:
            call, measure = forms[name]
            call = call or torch.compile(form, dynamic=False)
            differ = other_rows(want, call(xs[0], bias)[1])
            say(name, kernel, shape, differ=differ, **({} if CPU else {"us": measure(call, xs, bias)}))
        except Exception as e:  # a peer that cannot run is a cell, not the end
            say(name, kernel, shape, note=f"failed: {type(e).__name__}")
            print(f"{name}, {kernel} {shape}: {e}", file=sys.stderr)
        if CPU and not (want.min() >= 0 and want.max() < E and want.shape == (T, K)):
            sys.exit(f"{kernel} {shape}: ids out of range")


def all_of(who):
    for T in PLAIN:
        one("top-k", f"256/8 T={T}", topk, T, 256, who)
    for T in GROUPED:
        one("grouped", f"256/8/4/8 T={T}", grouped, T, 256, who)
    for T, E in CHOICE:
        one("expert choice", f"{T}x{E}", expert_choice, T, E, who)
    for T in LAYERS:
        one("EC, 60 layers", f"{T}x256", expert_choice, T, 256, who, n=4 if CPU else 60)


def main():
    all_of(("torch eager", "torch graph", "Triton"))
    all_of(("torch.compile",))  # last: it may not end before the clock does
    return 0


if __name__ == "__main__":
    sys.exit(main())
