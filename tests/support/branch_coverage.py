# SPDX-License-Identifier: Apache-2.0
"""Branch coverage of the parsers, from a build of preset coverage whose tests
have run:

    python3 tests/support/branch_coverage.py BUILD [--missing] [--least PERCENT]

A parser is what reads bytes that others wrote; the list is below. A branch
that only a failed allocation takes counts like any other, and so does one that
no input takes (the case of a switch that an enumeration does not have). 1 where
all of them together are below --least."""

import argparse
import collections
import json
import os
import subprocess
import sys

PARSERS = """
loader/jsonscan.c loader/safetensors.c loader/header_entry.c
loader/index.c loader/keyset.c
loader/nameset.c loader/table.c loader/tiling.c loader/manifest.c
loader/slots_file.c loader/sources_file.c
loader/base/json.c loader/base/json_syntax.c loader/base/utf8.c
mapping/config.c mapping/config_layers.c mapping/family.c
mapping/family_config.c mapping/family_desc.c
mapping/names.c mapping/npy.c mapping/load_counts.c mapping/placement.c
mapping/placement_arrays.c mapping/placement_formats.c mapping/placement_json.c
mapping/placement_npy.c mapping/placement_torch.c mapping/placement_yaml.c
mapping/placement_zip.c mapping/routes_file.c
loader/sign_bundle.c loader/sign_statement.c
convert/journal.c convert/journal_read.c
""".split()


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
    for source in PARSERS:
        taken = branches_of(build, source)
        if not taken:
            print("%-34s not built" % source)
            continue
        missing = [str(i) for i, b in sorted(taken.items()) if 0 in b]
        n = sum(map(len, taken.values()))
        k = sum(c > 0 for b in taken.values() for c in b)
        total, hit = total + n, hit + k
        print("%-34s %5d of %5d branches  %5.1f %%" % (
            source, k, n, 100 * k / max(n, 1)))
        if opts.missing:
            print("    lines " + " ".join(missing))
    percent = 100 * hit / max(total, 1)
    print("%-34s %5d of %5d branches  %5.1f %%" % ("all", hit, total, percent))
    return percent < opts.least


if __name__ == "__main__":
    sys.exit(main())
