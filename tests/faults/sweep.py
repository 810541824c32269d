# SPDX-License-Identifier: Apache-2.0
"""Everything that can answer wrongly answers wrongly once:

    python3 tests/faults/sweep.py [calls|allocations|compound|strace]...
        [--all] [--scenes NAME,...] [--points N] [--jobs N] [--seed N]

calls        each call of the file system and the kernel fails once (EIO,
             ENOSPC, EINTR, ...), transfers half, or is where the process dies
allocations  the n-th allocation gives NULL, of every command (commands.py)
compound     dies at one call; what goes on with it fails at another
strace       the same failures made by the kernel's tracer, libc's own calls
             included

Then the same command again must come to the bytes of an undisturbed run. What
the failing run may say: 0 and the whole result, or 4 and a sentence; nothing
else, and never a signal. Without --all: N points a scene, of all kinds. Prints
a table of counts. Needs MOEC_SHIM (tests/faults/shim.c) and MOEC_CONVERT."""

import argparse
import collections
import concurrent.futures
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import commands
import scenes
from scenes import Failure

# What may go wrong with which call. Everything may die.
TRANSFERS = {"read", "pread", "pwrite", "write", "copy_range"}
ERRORS = {
    "create": ["EIO", "ENOSPC", "EACCES", "EMFILE"],
    "open": ["EIO", "EMFILE", "EINTR"],
    "openat2": ["EIO", "EMFILE", "EINTR", "ENOSYS", "EAGAIN"],
    "fopen": ["EIO", "EMFILE"],
    "read": ["EIO", "EINTR", "short"],
    "pread": ["EIO", "EINTR", "short"],
    "pwrite": ["EIO", "ENOSPC", "EINTR", "EDQUOT", "short", "torn"],
    "write": ["EIO", "ENOSPC", "EINTR", "short", "torn"],
    "copy_range": ["EIO", "ENOSPC", "EINTR", "EOPNOTSUPP", "short", "torn"],
    "fallocate": ["EIO", "ENOSPC", "EINTR", "EOPNOTSUPP"],
    "ftruncate": ["EIO", "EINTR"],
    "fsync": ["EIO", "ENOSPC", "EINTR"],
    "fdatasync": ["EIO", "ENOSPC"],
    "rename": ["EIO", "ENOSPC"],
    "renameat2": ["EIO", "ENOSPC", "EINVAL"],
    "mkdir": ["EIO", "ENOSPC", "EACCES"],
    "fsetxattr": ["EIO", "EOPNOTSUPP"],
    "fgetxattr": ["EIO"],
    "fremovexattr": ["EIO"],
    "close": ["EIO", "EINTR"],
    "flock": ["EINTR", "EIO"],
    "thread": ["EAGAIN"],
    "fdopendir": ["ENOMEM"],
}
# Interrupted or short, and nobody but us should ever know.
SILENT = {("read", "EINTR"), ("pread", "EINTR"), ("pwrite", "EINTR"),
          ("fallocate", "EINTR"), ("openat2", "EINTR"), ("openat2", "ENOSYS"),
          ("openat2", "EAGAIN"), ("fallocate", "EOPNOTSUPP"),
          ("fsetxattr", "EOPNOTSUPP"), ("read", "short"), ("pread", "short"),
          ("pwrite", "short"), ("renameat2", "EINVAL")}

local = threading.local()
labels = iter(range(1 << 30))
mutex = threading.Lock()


def label():
    if not hasattr(local, "label"):
        with mutex:
            local.label = str(next(labels))
    return local.label


def kinds_of(scene, scratch):
    """The calls of an undisturbed run, in order."""
    cwd = scenes.fresh(scene, scratch, label())
    log = os.path.join(scratch, "log-" + label())
    done = scenes.run(scene.argv, cwd, {"MOEC_FAULT_LOG": log})
    if done.returncode != 0:
        raise Failure("%s under the shim: exit %d, %s" % (
            scene.name, done.returncode, done.stderr.decode()))
    with open(log) as f:
        kinds = f.read().split()
    os.unlink(log)
    return kinds


def judge(scene, cwd, done, what, silent):
    """How a disturbed run ended: 'whole', 'said' or 'died'."""
    said = done.stderr.decode(errors="replace").strip()
    if what in ("kill", "torn") and done.returncode == -9:
        return "died"
    if done.returncode == scene.code:
        if not scene.result:
            if scene.same and scenes.answer(done) != scene.said:
                raise Failure("exit %d and another answer" % done.returncode)
        elif not scene.rest:
            scenes.finished(scene, cwd)
        return "whole"
    if done.returncode != 4:
        raise Failure("exit %d: %s" % (done.returncode, said))
    if not said:
        raise Failure("exit 4 without a sentence")
    if silent:
        raise Failure("should not have been noticed: %s" % said)
    return "said"


def keeps_old(scene, cwd, old):
    """Without a new result, what was there before is there."""
    out = os.path.join(cwd, scene.result)
    if scenes.differs(scene.want, out) is None:
        return
    # File systems without an exchange have a moment without OUT.
    aside = out + ".replaced"
    for place in (out, aside):
        if os.path.isdir(place) and scenes.differs(
                os.path.join(old, scene.result), place) is None:
            if place == aside:
                os.rename(aside, out)
            return
    raise Failure("neither the old result nor the new one")


def disturbed(scene, scratch, shim, what, silent=False):
    cwd = scenes.fresh(scene, scratch, label())
    try:
        done = scenes.run(scene.argv, cwd, shim)
    except subprocess.TimeoutExpired:
        raise Failure("hangs") from None
    how = judge(scene, cwd, done, what, silent)
    scene.holds(cwd, how == "whole")
    if how != "whole" and scene.replaces:
        keeps_old(scene, cwd, scene.begin)
    if how != "whole" or scene.rest:
        if scenes.go_on(scene, cwd) == "there" and how != "whole":
            how = "there"
    return how


# ------------------------------------------------------------------- calls

def call_points(kinds):
    seen = collections.Counter()
    for kind in kinds:
        seen[kind] += 1
        for what in ERRORS.get(kind, ["EIO"]) + ["kill"]:
            yield seen[kind], kind, what


def choose(points, n, rng):
    """n of them: one of each pair first, then any."""
    points = list(points)
    rng.shuffle(points)
    first, rest, seen = [], [], set()
    for p in points:
        (rest if p[1:] in seen else first).append(p)
        seen.add(p[1:])
    return (first + rest)[:n]


def one_call(scene, scratch, point):
    i, kind, what = point
    return disturbed(scene, scratch, {"MOEC_FAULT_AT": "%s/%d:%s" % (
        kind, i, what)}, what, (kind, what) in SILENT)


def sweep_calls(scene, scratch, opts, rng):
    points = call_points(kinds_of(scene, scratch))
    points = list(points) if opts.all else choose(points, opts.points, rng)
    return points, one_call


# ---------------------------------------------------------------- compound

def one_compound(scene, scratch, point):
    i, j, what = point
    cwd = scenes.fresh(scene, scratch, label())
    done = scenes.run(scene.argv, cwd, {"MOEC_FAULT_AT": "%d:kill" % i})
    if done.returncode not in (-9, 0):
        raise Failure("exit %d" % done.returncode)
    if os.path.exists(os.path.join(cwd, scene.result)) and not scene.begin:
        return scenes.go_on(scene, cwd)
    done = scenes.run(scene.argv, cwd,
                      {"MOEC_FAULT_AT": "%d:%s" % (j, what)})
    if done.returncode not in (-9, 0, 4):
        raise Failure("going on: exit %d, %s" % (
            done.returncode, done.stderr.decode(errors="replace")))
    if done.returncode == 0 and not scene.rest:
        scenes.finished(scene, cwd)
    scenes.go_on(scene, cwd)
    return "died" if done.returncode == -9 else \
        "whole" if done.returncode == 0 else "said"


def sweep_compound(scene, scratch, opts, rng):
    if not scene.result:
        return [], None
    n = len(kinds_of(scene, scratch))
    count = opts.points * (20 if opts.all else 1)
    return [(rng.randint(1, n), rng.randint(1, n),
             rng.choice(["EIO", "ENOSPC", "kill", "kill"]))
            for _ in range(count)], one_compound


# ------------------------------------------------------------- allocations

class Server:
    """A scene's command, which the shim forks behind exec and linking. One
    directory for all its runs."""

    def __init__(self, scene, scratch, how):
        self.scene, self.how = scene, how
        self.cwd = scenes.fresh(scene, scratch, label())
        self.before = scenes.state(self.cwd)
        self.process = subprocess.Popen(
            scenes.spelled(scene.argv, self.cwd), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, bufsize=0, cwd=self.cwd, env=dict(
                scenes.environment(scene.env), LD_PRELOAD=scenes.SHIM,
                MOEC_FAULT_SERVER=how, MOEC_FAULT_NOSYNC="1",
                # once, and not in each child
                LD_BIND_NOW="1"))
        first = self.process.stdout.readline()
        # Allocations until then; -1 where it ended without a digest.
        self.first = int(first) if first.strip().isdigit() else -1

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def run(self, n):
        """With the n-th allocation failing: what subprocess.run returns, and
        allocations, live ones, and the library that did not get its own."""
        pipe = self.process.stdout.fileno()
        self.process.stdin.write(b"%d %s\n" % (n, self.cwd.encode()))
        said = b""
        while said.count(b"\n") < 2:
            if not select.select([pipe], [], [], 60)[0]:
                os.kill(int(said.split()[0]), signal.SIGKILL)
                raise Failure("hangs")
            more = os.read(pipe, 64)
            if not more:
                raise Failure("the server of the shim has ended")
            said += more
        out, err, report = (self.read(end) for end in ("out", "err", "report"))
        done = subprocess.CompletedProcess(
            self.scene.argv, os.waitstatus_to_exitcode(int(said.split()[1])),
            out, err)
        if not report:
            raise Failure("did not come to its end: exit %d, %s" % (
                done.returncode, err.decode(errors="replace")))
        _, n, live, where = report.decode().split()
        return done, int(n), int(live), where

    def read(self, end):
        with open("%s.%s" % (self.cwd, end), "rb") as f:
            return f.read()

    def again(self):
        """An undisturbed run."""
        done = self.run(0)[0]
        if done.returncode != self.scene.code:
            raise Failure("the same command again: exit %d, %s" % (
                done.returncode, done.stderr.decode(errors="replace")))
        return done

    def begin(self):
        """The directory as the scene finds it."""
        if scenes.state(self.cwd) != self.before:
            scenes.fresh(self.scene, os.path.dirname(self.cwd), label())
            self.before = scenes.state(self.cwd)


def server_of(scene, scratch, how):
    """This thread's own."""
    server = getattr(local, "server", None)
    if server is None or server.scene is not scene or server.how != how:
        if server is not None:
            server.close()
        local.server = server = Server(scene, scratch, how)
    return server


def no_memory(done):
    """Exit 4 says that memory was short, and leaves no half document."""
    said = done.stderr.decode(errors="replace").strip().split("\n")[-1]
    # A thread that has no memory for its stack is EAGAIN to pthread_create.
    if not re.search("memory|cannot start a thread", said):
        raise Failure("another reason: %s" % said)
    if done.stdout.strip().startswith(b"{"):
        try:
            json.loads(done.stdout)
        except ValueError:
            raise Failure("half a document: %r" % done.stdout[-60:]) from None


def one_alloc(scene, scratch, point):
    n, how, _ = point
    server = server_of(scene, scratch, how)
    server.begin()
    cwd = server.cwd
    done, _, live, where = server.run(n)
    how = judge(scene, cwd, done, "NULL", False)
    if how == "said":
        no_memory(done)
    # libcrypto loses some of its own when it fails half-way, and keeps more
    # than a thousand once it has begun: where only this run began it, that is
    # what is seen.
    if 0 < live - scene.live < LIBCRYPTO_KEEPS and "crypto" not in where:
        raise Failure("%d allocations are left, %d of an undisturbed run" % (
            live, scene.live))
    scene.holds(cwd, how == "whole")
    if how != "whole" and scene.replaces:
        keeps_old(scene, cwd, scene.begin)
    # Where nothing is left behind, the next run is the undisturbed one.
    if how == "whole" and not (scene.rest and scene.result):
        pass
    elif scene.remote or scene.rest or scenes.state(cwd) != server.before:
        scenes.go_on(scene, cwd, server.again)
    return how


# Swept from their very begin, with what libcrypto allocates to begin itself;
# all others from where it has: the same calls, made by the same lines.
COLD = ("placement", "inspect", "convert")


def sweep_allocs(scene, scratch, opts, rng):
    how = "cold" if scene.name in COLD else "warm"
    server = server_of(scene, scratch, how)
    if server.first < 0: # ends without a digest
        how = "cold"
        server = server_of(scene, scratch, how)
    server.begin()
    done, n, scene.live, _ = server.run(0)
    if judge(scene, server.cwd, done, "nothing", True) == "whole":
        scene.holds(server.cwd, True)
    points = [(i, how, "NULL") for i in range(server.first + 1, n + 1)]
    if not opts.all and points:
        points = [points[0]] + rng.sample(points, min(opts.points, len(points)))
    return points, one_alloc


# ------------------------------------------------------------------ strace

SYSCALLS = ["openat", "openat2", "read", "pread64", "write", "pwrite64",
            "fsync", "fdatasync", "fallocate", "renameat", "renameat2",
            "unlinkat", "mkdirat", "close", "newfstatat", "getdents64",
            "flock", "mmap", "clone3", "fcntl", "fsetxattr"]
# Before main, and whoever fails these fails before there is anybody to say so.
SKIP_FIRST = {"openat": 12, "read": 12, "mmap": 60, "close": 12, "pread64": 4,
              "newfstatat": 12}


def trace(scene, cwd, extra):
    return subprocess.run(
        ["strace", "-f", "-qq", "-o", os.path.join(cwd, "..", "trace-" +
                                                   label()),
         *extra, *scenes.spelled(scene.argv, cwd)], cwd=cwd,
        env=scenes.environment(), stdin=subprocess.DEVNULL,
        capture_output=True, timeout=120)


def one_strace(scene, scratch, point):
    i, call, what = point
    cwd = scenes.fresh(scene, scratch, label())
    how = "signal=SIGKILL" if what == "kill" else "error=" + what
    done = trace(scene, cwd, ["-e", "trace=" + call, "-e",
                              "inject=%s:%s:when=%d" % (call, how, i)])
    # Nobody of ours is there yet where a library cannot be mapped.
    loading = done.returncode == 127 and b"loading shared lib" in done.stderr
    if done.returncode in (-9, 137) or loading:
        done.returncode, what = -9, "kill"
    how = judge(scene, cwd, done, what, False)
    if how != "whole" or scene.rest:
        scenes.go_on(scene, cwd)
    return how


def sweep_strace(scene, scratch, opts, rng):
    cwd = scenes.fresh(scene, scratch, label())
    trace(scene, cwd, ["-e", "trace=" + ",".join(SYSCALLS)])
    n = collections.Counter()
    with open(os.path.join(scratch, "trace-" + label())) as f:
        for line in f:
            m = re.match(r"(?:\d+ +)?([a-z0-9]+)\(", line)
            if m:
                n[m.group(1)] += 1
    points = [(i, call, what)
              for call in SYSCALLS
              for i in range(SKIP_FIRST.get(call, 0) + 1, n[call] + 1)
              for what in ("EIO", "ENOSPC", "kill")]
    if not opts.all:
        points = choose(points, opts.points, rng)
    return points, one_strace


LIBCRYPTO_KEEPS = 1000

SWEEPS = {"calls": sweep_calls, "compound": sweep_compound,
          "allocations": sweep_allocs, "strace": sweep_strace}
ENDS = ("whole", "said", "died", "there", "again")
HEADS = {"whole": "not felt", "said": "exit 4", "died": "died",
         "there": "was done", "again": "was done"}


def attempt(fn, scene, scratch, point):
    try:
        return fn(scene, scratch, point), None
    except (Failure, OSError) as e:
        why = "%s, call %s: %s" % (scene.name, " ".join(map(str, point)), e)
        if sys.stderr.isatty():
            print(why, file=sys.stderr)
        return "FAILED", why


def sweep(name, all_scenes, scratch, opts, failures):
    rng = random.Random(opts.seed)
    print("%-12s %-10s %7s %9s %7s %7s %9s %7s" % (
        name, "command", "points", "not felt", "exit 4", "died", "was done",
        "FAILED"))
    total = 0
    for scene in all_scenes:
        points, fn = SWEEPS[name](scene, scratch, opts, rng)
        if not points:
            continue
        with concurrent.futures.ThreadPoolExecutor(opts.jobs) as pool:
            ends = list(pool.map(
                lambda p: attempt(fn, scene, scratch, p), points))
        n = collections.Counter(HEADS.get(e, e) for e, _ in ends)
        failures += [why for _, why in ends if why]
        total += len(points)
        print("%-12s %-10s %7d %9d %7d %7d %9d %7d" % (
            "", scene.name, len(points), n["not felt"], n["exit 4"],
            n["died"], n["was done"], n["FAILED"]), flush=True)
        shown = {}
        for _, why in ends: # one of each kind
            if why:
                shown.setdefault(re.sub(r"\d+", "N", why), why)
        for why in list(shown.values())[:20]:
            print("FAIL:", why, flush=True)
    return total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sweeps", nargs="*", default=["calls"])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--scenes", default="")
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    opts = parser.parse_args()
    scenes.die_without(scenes.SHIM)
    if "strace" in opts.sweeps and not shutil.which("strace"):
        print("no strace here: its part is skipped")
        opts.sweeps.remove("strace")
    failures, total = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        try:
            names = [n for n in opts.scenes.split(",") if n]
            for name in opts.sweeps:
                where = os.path.join(scratch, name)
                os.mkdir(where)
                more = commands if name == "allocations" else None
                some = scenes.build(where, names, more)
                if more and not names:
                    more.must_have_all(some)
                total += sweep(name, some, where, opts, failures)
        except Failure as e:
            failures.append(str(e))
            print("FAIL:", e)
    print("%d points, %d failed" % (total, len(failures)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
