# SPDX-License-Identifier: Apache-2.0
"""Branch coverage of the parsers, from a build of preset coverage whose tests
have run:

    python3 tests/support/branch_coverage.py BUILD [--missing] [--least PERCENT]

A parser is what reads bytes that others wrote; the list is below. A branch
that only a failed allocation takes counts like any other. Left out, and
counted apart, are those that no input takes (NEVER). 1 where all of them
together are below --least."""

import argparse
import collections
import json
import os
import re
import subprocess
import sys

PARSERS = """
loader/jsonscan.c loader/safetensors.c loader/index.c loader/keyset.c
loader/nameset.c loader/table.c loader/tiling.c loader/manifest.c
loader/manifest_fields.c loader/slots_file.c loader/sources_file.c
loader/base/json.c loader/base/json_syntax.c loader/base/utf8.c
mapping/config.c mapping/family.c mapping/family_config.c mapping/family_desc.c
mapping/names.c mapping/npy.c mapping/load_counts.c mapping/placement.c
mapping/placement_arrays.c mapping/placement_formats.c mapping/placement_json.c
mapping/placement_npy.c mapping/placement_torch.c mapping/placement_yaml.c
mapping/placement_zip.c mapping/routes_file.c
loader/sign_bundle.c loader/sign_statement.c
convert/journal.c
""".split()


# Where gcc sees branches that no input takes: how many of them at most, for
# each place in a line that matches, and only of those that were not taken.
NEVER = (
    ("jansson's macros ask each pointer for NULL",
     re.compile(r"\bjson_(is_(null|object|array|string|integer|real|true)|"
                r"(object|array)_foreach) ?\("), 1),
    ("the same, where a macro has two of them",
     re.compile(r"\bjson_is_(number|boolean) ?\("), 3),
    ("a switch over all values of an enumeration has no other case",
     re.compile(r"^\s*switch \("), 1),
)


def never(line, untaken):
    """How many of a line's untaken branches are left out, for each reason."""
    out = []
    for _, pattern, each in NEVER:
        n = min(untaken, each * len(pattern.findall(line)))
        untaken -= n
        out.append(n)
    return out


def notes_of(build, source):
    """The compiler's notes of a source, and a directory from which the paths
    in them resolve."""
    top, _, rest = source.partition("/")
    where = os.path.join(build, top)
    for target in ("moec_" + top,):
        path = os.path.join("CMakeFiles", target + ".dir", rest + ".gcno")
        if os.path.exists(os.path.join(where, path)):
            return where, path
    return where, None


def branches_of(build, source):
    """{line: [times taken, ...]} or None where nothing ran."""
    where, notes = notes_of(build, source)
    if notes is None:
        return None
    done = subprocess.run(["gcov", "--json-format", "--stdout",
                           "--branch-probabilities", notes], cwd=where,
                          capture_output=True, text=True)
    taken = collections.defaultdict(list)
    for text in done.stdout.splitlines():
        for file in json.loads(text)["files"]:
            if not file["file"].endswith(source):
                continue
            for line in file["lines"]:
                taken[line["line_number"]] += [
                    b["count"] for b in line["branches"]]
    return taken


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--least", type=float, default=0)
    opts = parser.parse_args()
    build = os.path.abspath(opts.build)
    total = hit = 0
    left_out = [0] * len(NEVER)
    top = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
    for source in PARSERS:
        taken = branches_of(build, source)
        if not taken:
            print("%-34s not built" % source)
            continue
        with open(os.path.join(top, source), encoding="utf-8") as f:
            text = f.read().splitlines()
        n = 0
        missing = []
        for i, b in sorted(taken.items()):
            none = b.count(0)
            out = never(text[i - 1], none)
            left_out = [x + y for x, y in zip(left_out, out)]
            n += len(b) - sum(out)
            if none > sum(out):
                missing.append(str(i))
        k = sum(c > 0 for b in taken.values() for c in b)
        total, hit = total + n, hit + k
        print("%-34s %5d of %5d branches  %5.1f %%" % (
            source, k, n, 100 * k / max(n, 1)))
        if opts.missing:
            print("    lines " + " ".join(missing))
    percent = 100 * hit / max(total, 1)
    print("%-34s %5d of %5d branches  %5.1f %%" % ("all", hit, total, percent))
    for (why, _, _), n in zip(NEVER, left_out):
        print("left out: %d branches: %s" % (n, why))
    return percent < opts.least


if __name__ == "__main__":
    sys.exit(main())
