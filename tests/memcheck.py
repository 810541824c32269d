# SPDX-License-Identifier: Apache-2.0
"""The tests of a build directory under valgrind's memcheck, and a table:

    python3 tests/memcheck.py BUILD [--jobs N] [--all] [--list] [REGEX]...

Each program of BUILD that a test runs, by itself or through a script, runs in
valgrind: reads of what nobody wrote, which no sanitizer of gcc sees, and bytes
definitely lost are findings, in a process that dies too. Logs stay in
BUILD/memcheck/TEST. 1 where anything is found or a test fails; 77 without
valgrind. Without REGEX: all tests, but of scripts that do one thing with many
checkpoints the SAMPLE below; with --all, hours of two cores, everything.

What valgrind 3.19 does not have is ENOSYS there: openat2, Landlock, seccomp.
io_uring is refused, because it does not see what completions write. AVX-512
is not told of: kernels run as AVX2."""

import argparse
import collections
import concurrent.futures
import ctypes
import errno
import glob
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

# What does not run, and why.
LEFT_OUT = [
    (r"house\.(?!struct_offsets)", "runs compilers and text tools, none of us"),
    (r"python\.", "the process is an interpreter"),
    (r"faults\.", "its shim takes the allocator's place, as valgrind does"),
    (r"cli\.sandbox", "valgrind knows neither Landlock nor seccomp"),
    (r"gpu\.|unit\.device", "the emulated device switches stacks"),
    (r"unit\.bombs", "headers of a hundred megabytes take hours"),
]
# What those scripts are given: each stored format, fused and apart, with and
# without shared experts; deaths of resume.
SAMPLE = {
    "cli.fixtures_matrix": ["deepseek_v3_fp8", "gpt_oss", "mixtral"],
    "cli.family_trees": ["deepseek_v4", "gpt_oss-bf16", "kimi_k2-int4",
                         "minimax_m3-mxfp8", "nemotron_h-nvfp4"],
    "cli.validate_fixtures": ["deepseek_v3_fp8", "gpt_oss", "llama4"],
    "cli.validate_families": ["deepseek_v4", "kimi_k2-int4", "grok"],
    "cli.store": ["deepseek_v3_fp8", "gpt_oss"],
    "cli.resume": ["5"],
}
# Whose processes die with threads at work: what those held is no leak.
DIES = r"unit\.(place|ranks|resume)|cli\.resume"
OPTIONS = ["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite",
           "--num-callers=30", "--fair-sched=try"]
# A process that was killed has no summary.
FINDING = re.compile(
    r"^==\d+== (Conditional jump|Use of uninit|Syscall param|Invalid |"
    r"Mismatched free|Source and destination overlap|Jump to the invalid|"
    r"Argument '.*' of function|Unrecognised|"
    r"Process terminating with default action of signal (4|6|7|8|11) )", re.M)
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) errors? from", re.M)
LOST = re.compile(r"definitely lost: ([\d,]+) bytes", re.M)

Result = collections.namedtuple(
    "Result", "name verdict seconds processes errors lost log")


def refuse_io_uring():
    """From here on, in all children too, by a filter of the kernel's."""
    io_uring_setup, libc = 425, ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(b"".join(
        struct.pack("HBBI", *op) for op in (
            (0x20, 0, 0, 0),               # the call's number
            (0x15, 0, 1, io_uring_setup),  # is it that?
            (0x06, 0, 0, 0x00050000 | errno.ENOSYS),
            (0x06, 0, 0, 0x7fff0000))))    # all others
    program = struct.pack("HxxxxxxP", 4, ctypes.addressof(code))
    no_new_privs, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privs, 1, 0, 0, 0) != 0 or libc.prctl(
            set_seccomp, filter_mode, program, 0, 0) != 0:
        sys.exit("seccomp: %s" % os.strerror(ctypes.get_errno()))


def why_left_out(name):
    for pattern, why in LEFT_OUT:
        if re.match(pattern, name):
            return why
    return None


def tests_of(build):
    said = subprocess.run(
        ["ctest", "--show-only=json-v1", "--test-dir", build],
        check=True, capture_output=True, text=True).stdout
    for test in json.loads(said)["tests"]:
        if "command" in test:
            yield (test["name"], test["command"],
                   {p["name"]: p["value"] for p in test["properties"]})


def is_program(path, build):
    """An executable of ours: not a script, not a library."""
    if not path.startswith(build + os.sep) or not os.access(path, os.X_OK):
        return False
    if not os.path.isfile(path) or ".so" in os.path.basename(path):
        return False
    with open(path, "rb") as f:
        return f.read(4) == b"\x7fELF"


def wrap(word, build, work):
    """WORD, or NAME=WORD, with a program replaced by a script that runs it."""
    name, equals, path = word.rpartition("=")
    if not is_program(path, build):
        return word
    script = os.path.join(work, "bin", os.path.basename(path))
    leaks = "no" if re.match(DIES, os.path.basename(work)) else "full"
    options = " ".join(OPTIONS + ["--leak-check=" + leaks])
    with open(script, "w") as f:
        f.write("#!/bin/sh\nexec valgrind %s --log-file='%s/log.%%p' '%s' "
                '"$@"\n' % (options, work, path))
    os.chmod(script, 0o755)
    return name + equals + script


def read_logs(work):
    processes = errors = lost = 0
    first = None
    for path in sorted(glob.glob(os.path.join(work, "log.*"))):
        with open(path, errors="replace") as f:
            text = f.read()
        processes += 1
        summary = SUMMARY.findall(text)
        n = int(summary[-1]) if summary else 0
        n = max(n, len(FINDING.findall(text)))
        if n != 0 and first is None:
            first = path
        errors += n
        lost += sum(int(x.replace(",", "")) for x in LOST.findall(text)[-1:])
    return processes, errors, lost, first


def run(test, build, limit):
    name, command, properties = test
    work = os.path.join(build, "memcheck", name)
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(os.path.join(work, "bin"))
    env = dict(os.environ)
    for word in properties.get("ENVIRONMENT", []):
        key, _, value = wrap(word, build, work).partition("=")
        env[key] = value
    started = time.monotonic()
    with open(os.path.join(work, "output"), "w") as out:
        child = subprocess.Popen(
            [wrap(word, build, work) for word in command], env=env,
            cwd=properties.get("WORKING_DIRECTORY", build), stdout=out,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True)
        try:
            rc = child.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL) # what it started, too
            child.wait()
            rc = "time"
    verdict = {0: "ok", 77: "skipped"}.get(rc, "fails (%s)" % rc)
    return Result(name, verdict, time.monotonic() - started, *read_logs(work))


def show(r):
    print("| %s | %.0f | %d | %d | %d | %s |" % (
        r.name, r.seconds, r.processes, r.errors, r.lost, r.verdict),
        flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("regex", nargs="*")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--limit", type=int, default=3600,
                        help="seconds a test")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_intermixed_args()
    if shutil.which("valgrind") is None:
        print("SKIPPED: valgrind is not installed")
        return 77
    build = os.path.realpath(args.build)
    os.environ.setdefault("VALGRIND_OPTS", "--track-origins=yes")
    sample = {} if args.all else SAMPLE
    chosen = [(name, command + sample.get(name, []), properties)
              for name, command, properties in tests_of(build)
              if not args.regex or any(re.search(x, name) for x in args.regex)]
    left_out = [t[0] for t in chosen if why_left_out(t[0])]
    chosen = [t for t in chosen if t[0] not in left_out]
    if args.list:
        print("\n".join(t[0] for t in chosen))
        return 0
    refuse_io_uring()

    print("| test | s | processes | errors | bytes lost | verdict |")
    print("|---|---|---|---|---|---|")
    results = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for f in concurrent.futures.as_completed(
                [pool.submit(run, t, build, args.limit) for t in chosen]):
            results.append(f.result())
            show(results[-1])
    for name in left_out:
        print("| %s | | | | | left out: %s |" % (name, why_left_out(name)))
    bad = [r for r in results
           if r.errors != 0 or r.verdict not in ("ok", "skipped")]
    for r in bad:
        print("\n%s: %s" % (r.name, r.log or os.path.join(
            build, "memcheck", r.name, "output")))
    print("\n%d tests, %d processes, %d errors, %d bytes lost; %d bad, "
          "%d left out" % (
              len(results), sum(r.processes for r in results),
              sum(r.errors for r in results), sum(r.lost for r in results),
              len(bad), len(left_out)))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
