#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What family_trees.sh left behind, against each tree's experts.json: what inspect and plan said, and the layouts.

usage: check_family_trees.py TREES CHECKS        CHECKS: the directory of check_layout.py
"""
import contextlib
import io
import json
import os
import sys

sys.dont_write_bytecode = True
RUNS = 4  # combinations of options in family_trees.sh


def inspected(work, facts):
    """Facts that differ: (key, found, expected)."""
    with open(os.path.join(work, "inspect")) as f:
        got = json.load(f)
    want = {"ok": True, "family": facts["family"], "model_type": facts["model_type"], "n_routed_experts": facts["E"],
            "n_shared_experts": facts["slots"], "top_k": facts["K"], "hidden_size": facts["H"],
            "moe_intermediate_size": facts["I"], "n_layers": facts["layers"], "moe_layers": facts["moe_layers"],
            "mtp_layers": facts["mtp_layers"], "gated": facts["gated"]}
    router = {"score": facts["score"], "n_group": facts["n_group"] or 0, "topk_group": facts["topk_group"] or 0,
              "routed_scaling_factor": facts["routed_scaling_factor"]}
    found = [(k, got[k], v) for k, v in want.items() if got[k] != v]
    found += [("router." + k, got["router"][k], v) for k, v in router.items() if got["router"][k] != v]
    if got["shared"]["width"] != facts["shared_width"]:
        found.append(("shared.width", got["shared"]["width"], facts["shared_width"]))
    if (got["shared"]["no_fuse"] is not None) != (facts["slots"] == 0 and facts["shared_width"] != 0):
        found.append(("shared.no_fuse", got["shared"]["no_fuse"], facts["slots"]))
    return found


def planned(work, i, words, facts):
    """The plan's bytes are those of the files that convert wrote."""
    with open(os.path.join(work, f"plan{i + 1}")) as f:
        plan = json.load(f)
    out = os.path.join(work, f"out{i + 1}")
    ranks = int(words[words.index("--ep") + 1])
    found = [] if len(plan["ranks"]) == ranks else [f"plan has {len(plan['ranks'])} ranks"]
    for rank in plan["ranks"]:
        size = sum(os.path.getsize(os.path.join(out, f)) for f in os.listdir(out)
                   if f.startswith(f"experts-rank-{rank['rank']:05d}-"))
        if size != rank["bytes_written"]:
            found.append(f"plan: rank {rank['rank']} writes {rank['bytes_written']} bytes, there are {size}")
    return found


def has_tables(check_layout, out):
    """NVFP4's activation scales are tables over all slots of all ranks: check_layout.py knows rows of one rank only."""
    for name in sorted(os.listdir(out)):
        if name.startswith("experts-rank-"):
            _, header = check_layout.read_header(os.path.join(out, name))
            rows = {}
            for tensor, entry in header.items():
                if "_input_scale" in tensor:
                    rows.setdefault(tensor.rsplit(".", 1)[0], entry["shape"][0])
            return any(entry["shape"][0] != rows[tensor.rsplit(".", 1)[0]] for tensor, entry in header.items()
                       if tensor.rsplit(".", 1)[0] in rows)
    return False


def layout(check_layout, tree, out, words):
    check_layout.findings.clear()
    sys.argv = ["check_layout.py", out, tree] + words
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = check_layout.main()
    return [said.getvalue().rstrip()] if code else []


def main():
    trees, checks = sys.argv[1:]
    sys.path.insert(0, checks)
    import check_layout
    bad = n_layouts = 0
    names = sorted(n for n in os.listdir(trees) if not n.endswith(".work"))
    for name in names:
        tree, work = os.path.join(trees, name), os.path.join(trees, name + ".work")
        with open(os.path.join(tree, "experts.json")) as f:
            facts = json.load(f)["facts"]
        found = []
        try:
            found += [f"inspect: {k} is {g!r}, expected {w!r}" for k, g, w in inspected(work, facts)]
            with open(os.path.join(work, "checks")) as f:
                runs = [line.split() for line in f]
            if len(runs) != RUNS:
                found.append(f"{len(runs)} conversions came to their end, expected {RUNS}")
            for i, (out, *words) in enumerate(runs):
                found += planned(work, i, words, facts)
                if facts["check"] and not has_tables(check_layout, os.path.join(work, out)):
                    n_layouts += 1
                    found += [" ".join(words) + ": " + x
                              for x in layout(check_layout, tree, os.path.join(work, out), words)]
        except (OSError, KeyError, ValueError) as e:
            found.append(f"not checked: {e}")
        bad += bool(found)
        for x in found:
            print(f"{name}: {x}")
    print(f"{len(names) - bad} of {len(names)} trees as they should be, {n_layouts} layouts checked")
    return 1 if bad or not names else 0


if __name__ == "__main__":
    sys.exit(main())
