#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gpu_table.py FIGURES.jsonl: our figures beside their bars and their peers', as one Markdown table.

A line is {"who", "kernel", "shape"} with "us" (median microseconds a call) where it was timed. Ours also
say which bar they have: bar_us, bar_ratio (of "ratio"), bar_share (of "share"), bar_eager (times faster
than torch eager). Where no run gave a number there is none here either.
"""
import json
import sys

PEERS = ("torch eager", "torch.compile", "torch graph", "Triton")


def read(path):
    ours, peers, order = {}, {}, []
    with open(path, encoding="utf-8") as f:
        for line in f:
            if not line.startswith("{"):
                continue
            r = json.loads(line)
            key = r["kernel"], r["shape"]
            if key not in order:
                order.append(key)
            if r["who"] == "moec":
                ours[key] = r
            else:
                peers.setdefault(key, {})[r["who"]] = r
    return order, ours, peers


def us(value):
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def bar(r, eager):
    """The bar in words, what was reached, and whether that meets it (None: nothing to compare)."""
    timed = r.get("us")
    if "bar_us" in r:
        return f"{r['bar_us']:g} us", "", timed and timed <= r["bar_us"]
    if "bar_ratio" in r:
        got = r.get("ratio")
        return f"{r['bar_ratio']:g}x top-k", f"{got:.2f}x" if got else "", got and got <= r["bar_ratio"]
    if "bar_share" in r:
        got = r.get("share")
        reached = f"{got * 100:.0f} %, {r['gbps']:.0f} GB/s" if got else ""
        return f"{r['bar_share'] * 100:.0f} % of bandwidth", reached, got and got >= r["bar_share"]
    if "bar_eager" in r:
        got = eager / timed if eager and timed else None
        reached = f"{got:.0f}x" if got else ""
        if timed and "total_us" in r:
            over = r["total_us"] - r["plain_total_us"]
            reached += f" (60: {r['total_us']:.0f} us, plain {r['plain_total_us']:.0f}, over {over:.0f})"
        return f"{r['bar_eager']:g}x eager", reached, got and got >= r["bar_eager"]
    return "", f"{r['gbps']:.0f} GB/s" if "gbps" in r else "", None


def row(key, r, peers):
    eager = peers.get("torch eager", {}).get("us")
    words, reached, met = bar(r, eager)
    if "none" in r:
        mine, verdict = "no kernel", "not run"
    elif "error" in r:
        mine, verdict = f"ERROR: {r['error']}", "no"
    elif "us" in r:
        mine, verdict = f"{us(r['us'])} ({us(r['us_min'])})", "-" if met is None else "yes" if met else "NO"
    else:
        mine, verdict = "ran, not timed" if r else "not run", "-"
    cells = [key[0], key[1], mine, words, reached, verdict]
    for name in PEERS:
        p = peers.get(name, {})
        cells.append(us(p["us"]) if "us" in p else p.get("note", "not run" if words else ""))
    times = [p["us"] for p in peers.values() if "us" in p]
    cells.append(f"{min(times) / r['us']:.1f}x" if times and "us" in r else "")
    return cells


def main(path):
    order, ours, peers = read(path)
    if not order:
        print("No figures: not run.")
        return 0
    head = ["kernel", "shape", "us, median (least)", "bar", "reached", "met", *PEERS, "best peer / ours"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for key in order:
        cells = row(key, ours.get(key, {}), peers.get(key, {}))
        print("| " + " | ".join(c.replace("|", "/") for c in cells) + " |")
    for who in sorted({w for p in peers.values() for w, r in p.items() if "differ" in r}):
        n = sum(r.get("differ", 0) for p in peers.values() for w, r in p.items() if w == who)
        print(f"\n{who}: {n} rows whose ids are other than torch eager's")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
