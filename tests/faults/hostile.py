# SPDX-License-Identifier: Apache-2.0
"""A hostile world around moe-convert: malformed files, names that steer a
terminal, things that are no files, little of everything, full and read-only
disks, company at the destination.

    python3 tests/faults/hostile.py [CASE...]

Every case is a function below; its docstring says what is promised. A case
that this machine cannot make says so and is skipped."""

import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time

import scenes
from scenes import Failure, ROOT

MALFORMED = os.path.join(ROOT, "fixtures", "malformed")
CONVERT = ["convert", "src", "out", "--ep", "2"]


class Skip(Exception):
    pass


def check(holds, *why):
    if not holds:
        raise Failure(" ".join(str(w) for w in why))


class Done:
    """What came of a run; seconds of a CPU, not of a busy machine."""

    def __init__(self, code, out, err, rss_kib, seconds):
        self.returncode, self.stdout, self.stderr = code, out, err
        self.rss_kib, self.seconds = rss_kib, seconds

    def __str__(self):
        return "exit %d: %s" % (self.returncode, self.stderr[-400:])


def run(argv, limits=(), cwd=None, timeout=60, **more):
    """Run moe-convert; its usage of memory with it."""
    def prepare():
        for what, n in limits:
            resource.setrlimit(what, (n, n))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
        streams.update(more)
        child = subprocess.Popen([scenes.PROGRAM, *argv], cwd=cwd,
                                 preexec_fn=prepare, **streams)
        alarm = threading.Timer(timeout, child.kill)
        alarm.start()
        _, status, usage = os.wait4(child.pid, 0)
        alarm.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Done(child.returncode, out.read(), err.read(),
                    usage.ru_maxrss, usage.ru_utime + usage.ru_stime)


def same(got, want="want"):
    why = scenes.differs(want, got)
    check(why is None, got, why)


def clean(data, what):
    """No byte that steers a terminal."""
    bad = [b for b in data if b < 32 and b != 10 or b == 127]
    check(not bad, what, "has control bytes:", data[:300])
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Failure("%s is no UTF-8: %r" % (what, data[:300])) from None
    check(not any(0x80 <= ord(c) < 0xa0 for c in text), what, "has C1 codes")


def header(entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


# ------------------------------------------------------------------- input

def malformed():
    """Every malformed file gets the verdict of the table, within a second of a
    CPU and 64 MiB (128 where its header has tens of MiB), and names its rule."""
    subprocess.run([sys.executable, os.path.join(MALFORMED, "gen.py"),
                    "bad"], check=True, stdout=subprocess.DEVNULL)
    n = {"accept": 0, "reject": 0, "either": 0}
    slowest = most = 0
    with open(os.path.join(MALFORMED, "verdicts.tsv")) as f:
        rows = [line.rstrip("\n").split("\t") for line in f][1:]
    for name, want, _, rule, *_ in rows:
        path = os.path.join("bad", name + ".safetensors")
        done = run(["inspect", path, "--json"])
        said = json.loads(done.stdout)
        codes = {"accept": (0,), "reject": (3,), "either": (0, 3)}[want]
        check(done.returncode in codes, name, done)
        if done.returncode == 3:
            check(said["ok"] is False and said["error"]["rule"], name, said)
            if want == "reject":
                # covers-file-truncated is a case of covers-file
                check(said["error"]["name"].startswith(rule), name, "names",
                      said["error"]["name"], "for", rule)
        clean(done.stderr, name)
        big = os.path.getsize(path) > (8 << 20)
        check(done.seconds < 1, name, "takes", done.seconds, "s of a CPU")
        check(done.rss_kib < (128 if big else 64) << 10, name, "takes",
              done.rss_kib, "KiB")
        n[want] += 1
        slowest = max(slowest, done.seconds)
        most = max(most, done.rss_kib)
    check(len(rows) > 50, "only", len(rows), "cases")
    return "%d rejected, %d accepted, %d either; at most %.2f s, %.0f MiB" % (
        n["reject"], n["accept"], n["either"], slowest, most / 1024)


def not_files():
    """Directories, FIFOs, sockets, devices, links that lead out, nowhere or in
    a circle are refused (3) without waiting for them; hard links are files."""
    shard = "model-00002-of-00003.safetensors"
    real = os.path.join("src", shard)
    kept = "kept"
    os.rename(real, kept)

    def link(to):
        return lambda: os.symlink(to, real)

    def listen():
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(real)
    for name, make in {
            "directory": lambda: os.mkdir(real),
            "FIFO": lambda: os.mkfifo(real),
            "socket": listen,
            "device": link("/dev/zero"),
            "out": link(os.path.abspath(kept)),
            "parent": link("../kept"),
            "nowhere": link("nothing"),
            "circle": link(shard)}.items():
        make()
        done = run(CONVERT)
        check(done.returncode == 3, name, done)
        check(shard.encode() in done.stderr and done.stderr[:5] == b"[MOE-",
              name, done)
        check(not os.path.exists("out.partial"), name, "left out.partial")
        (os.rmdir if name == "directory" else os.unlink)(real)
    os.link(kept, real)
    done = run(CONVERT)
    check(done.returncode == 0, "hard link", done)
    same("out")


def not_outputs():
    """Nothing is followed, and nothing that is not ours is deleted or written
    to, where OUT and OUT.partial should be."""
    os.mkdir("precious")
    with open("precious/file", "w") as f:
        f.write("precious")

    def intact(what):
        with open("precious/file") as f:
            check(f.read() == "precious", what, "was touched")
    for place in ("out", "out.partial"):
        for make in (lambda p: os.symlink("precious", p),
                     lambda p: os.symlink("nothing", p),
                     os.mkfifo, lambda p: open(p, "w").close()):
            make(place)
            for force in ([], ["--force"]):
                done = run(CONVERT + force)
                check(done.returncode == 2, place, force, done)
            check(os.path.lexists(place), place, "is gone")
            os.unlink(place)
            intact(place)
    os.mkdir("out.partial")
    os.link("precious/file", "out.partial/file")
    done = run(CONVERT)
    check(done.returncode == 2, "not left over", done)
    intact("out.partial/file")
    shutil.rmtree("out.partial")
    # A data file of work to go on with has another name elsewhere.
    child = subprocess.Popen([scenes.PROGRAM, *CONVERT, "--threads", "1"],
                             env=dict(os.environ, LD_PRELOAD=scenes.SHIM,
                                      MOEC_FAULT_AT="pwrite/30:kill"),
                             stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    child.wait()
    name = next(n for n in os.listdir("out.partial")
                if n.startswith("experts-"))
    os.link(os.path.join("out.partial", name), "elsewhere")
    with open("elsewhere", "rb") as f:
        before = f.read()
    done = run(CONVERT)
    check(done.returncode == 0, "going on", done)
    with open("elsewhere", "rb") as f:
        check(f.read() == before, "a hard link was written through")
    same("out")


def escapes():
    """An index that names files elsewhere is refused, wherever they lead."""
    index = "src/model.safetensors.index.json"
    with open(index) as f:
        good = json.load(f)
    tensor = sorted(good["weight_map"])[0]
    shard = good["weight_map"][tensor]
    os.link(os.path.join("src", shard), shard)
    for name in ("../" + shard, "/etc/passwd", os.path.abspath(shard),
                 "./" + shard, "../src/" + shard, "a/../" + shard, "", ".",
                 "..", shard + "\0.safetensors", "..\\" + shard):
        bad = dict(good, weight_map=dict(good["weight_map"], **{tensor: name}))
        with open(index, "w") as f:
            json.dump(bad, f)
        done = run(["inspect", "src"])
        check(done.returncode == 3, repr(name), done)


def changing():
    """Files that change under the reader end in 3 (or 1 of verify), or in
    the bytes that were there; never in a signal or a wrong result."""
    shard = "src/model-00001-of-00003.safetensors"
    with open(shard, "rb") as f:
        good = f.read()
    stop = threading.Event()

    def meddle():
        while not stop.is_set():
            for n in (0, 100, 5000, len(good) // 2):
                os.truncate(shard, n)
                time.sleep(0.0005)
                with open(shard, "r+b") as f:
                    f.write(good)
                time.sleep(0.002)
    thread = threading.Thread(target=meddle)
    thread.start()
    seen = {}
    try:
        for _ in range(25):
            shutil.rmtree("out", ignore_errors=True)
            done = run(CONVERT)
            seen[done.returncode] = seen.get(done.returncode, 0) + 1
            check(done.returncode in (0, 2, 3), done)
            if done.returncode == 0:
                same("out")
            elif done.returncode == 2: # other work was begun with
                check(b"belongs to another conversion" in done.stderr, done)
                shutil.rmtree("out.partial")
    finally:
        stop.set()
        thread.join()
    return "exits %s" % seen


def names():
    """Names from files and paths reach terminals and documents escaped."""
    evil = "\x1b]0;x\x07\x1b[31m\n\r\u0085\u009b2J\u202e'\"<b>"
    tensors = {evil: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    os.mkdir("names")
    with open("names/model.safetensors", "wb") as f:
        f.write(header(tensors) + bytes(8))
    with open("src/config.json") as f:
        config = json.load(f)
    with open("names/config.json", "w") as f:
        json.dump(config, f)
    odd = b"names/\x1b[31m\n\xff.safetensors"
    with open(odd, "wb") as f:
        f.write(header({evil: dict(tensors[evil], shape=[3])}) + bytes(8))
    config["model_type"] = evil
    with open("names/other.json", "w") as f:
        json.dump(config, f)
    for argv in (["inspect", "names"], ["plan", "names", "--ep", "2"],
                 ["inspect", odd], ["check", "names", "--ep", "2"],
                 ["inspect", b"\x1b[31m\n\xff"],
                 ["verify", b"\x1b[31m\n\xff"],
                 ["explain", "src", "--layer", evil, "--expert", "0"],
                 ["explain", evil], [evil], ["inspect", "--" + evil],
                 ["plan", "src", "--ep", evil],
                 ["plan", "src", "--ep", "2", "--placement", odd],
                 ["plan", "src", "--ep", "2", "--family",
                  "names/other.json"]):
        for more in ([], ["--json"], ["-v"]):
            done = run(argv + more)
            check(done.returncode in (0, 1, 2, 3), argv, done)
            clean(done.stderr, "stderr of %r" % argv)
            clean(done.stdout, "stdout of %r" % argv)
            if more == ["--json"] and done.stdout:
                json.loads(done.stdout)
    os.unlink(odd)
    shutil.copy("names/other.json", "names/config.json")
    for more in ([], ["--json"]):
        done = run(["inspect", "names"] + more)
        check(done.returncode == 3, done)
        clean(done.stderr, "stderr")
        clean(done.stdout, "stdout")


# -------------------------------------------------------------- resources

COMMANDS = [
    CONVERT,
    ["convert", "src", "wide", "--ep", "8"],
    ["verify", "want", "--source", "src"],
    ["unconvert", "want", "back"],
    ["inspect", "src"],
    ["plan", "src", "--ep", "2"],
    ["explain", "want", "--layer", "1", "--expert", "3"],
    ["check", "want"],
    ["validate", "want", "--source", "src", "--tokens", "4"],
    ["selftest"],
]


def under(limit, n, allowed, more=()):
    seen = []
    for argv in COMMANDS:
        done = run(argv + list(more), [(limit, n)])
        check(done.returncode in allowed, argv, done)
        check(done.returncode == 0 or done.stderr, argv, "says nothing")
        seen.append(done.returncode)
    if os.path.exists("out"):
        same("out")
    if os.path.exists("back"):
        why = scenes.differs("src", "back")
        check(why is None, "back", why)
    return "%d of %d done" % (seen.count(0), len(seen))


def descriptors():
    """16 descriptors are enough for every command."""
    return under(resource.RLIMIT_NOFILE, 16, (0,))


def few_descriptors():
    """Fewer are a sentence and 4, or enough."""
    for n in (4, 5, 6, 7, 8, 10, 12):
        under(resource.RLIMIT_NOFILE, n, (0, 4))
        for name in ("out", "wide", "back"):
            shutil.rmtree(name, ignore_errors=True)


def address_space():
    """256 MiB of address space are enough for every command."""
    return under(resource.RLIMIT_AS, 256 << 20, (0,))


def little_memory():
    """Less is a sentence and 4; or 127 of who could not load libcrypto."""
    for mib in (24, 48, 96):
        under(resource.RLIMIT_AS, mib << 20, (0, 4, 127))
        for name in ("out", "wide", "back"):
            shutil.rmtree(name, ignore_errors=True)


def file_size():
    """A limit on the size of files is a full disk: 4, and it goes on later."""
    done = run(CONVERT, [(resource.RLIMIT_FSIZE, 100000)])
    check(done.returncode == 4 and b"large" in done.stderr, done)
    check(not os.path.exists("out"), "out is there")
    check(run(CONVERT).returncode == 0, "later")
    same("out")


class Mounted:
    """A small tmpfs at ./disk, where this machine gives us one."""

    def __init__(self, options):
        self.options = options

    def __enter__(self):
        os.makedirs("disk", exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", self.options,
                               "none", "disk"], capture_output=True)
        if done.returncode != 0:
            raise Skip("cannot mount: " + done.stderr.decode().strip())

    def __exit__(self, *_):
        subprocess.run(["umount", "disk"], check=True)


def remount(options):
    subprocess.run(["mount", "-o", "remount," + options, "disk"], check=True)


def full_disk():
    """A full file system is 4 with the file's name, leaves no result, and the
    same command goes on when there is room."""
    argv = ["convert", "src", "disk/out", "--ep", "2"]
    with Mounted("size=8k") :
        for kib in (8, 40, 160, 300, 440, 520, 540):
            remount("size=%dk" % kib)
            done = run(argv)
            if done.returncode == 0:
                break
            check(done.returncode == 4 and b"No space left" in done.stderr,
                  kib, "KiB", done)
            check(not os.path.exists("disk/out"), "a result")
        remount("size=4m")
        if not os.path.exists("disk/out"):
            done = run(argv)
            check(done.returncode == 0, done)
        same("disk/out")


def read_only_disk():
    """A read-only file system is 4 for who writes, and no matter to who
    reads."""
    with Mounted("size=4m"):
        shutil.copytree("want", "disk/want")
        shutil.copytree("src", "disk/src")
        remount("ro")
        done = run(["convert", "src", "disk/out", "--ep", "2"])
        check(done.returncode == 4 and b"ead-only" in done.stderr, done)
        for argv in (["verify", "disk/want"], ["inspect", "disk/src"],
                     ["convert", "disk/src", "out", "--ep", "2"],
                     ["unconvert", "disk/want", "back"]):
            done = run(argv)
            check(done.returncode == 0, argv, done)
        same("out")


def streams():
    """Closed streams are no file of ours; what was to be printed and could not
    be is 4."""
    def without(*fds):
        def close():
            for fd in fds:
                os.close(fd)
        return close
    for fds in ((1,), (0, 1, 2), (0,), (2,), (1, 2)):
        with tempfile.TemporaryFile() as sink:
            child = subprocess.Popen([scenes.PROGRAM, *CONVERT, "--json"],
                                     preexec_fn=without(*fds), stdout=sink,
                                     stderr=sink)
            code = child.wait()
        check(code == (4 if 1 in fds else 0), fds, "exit", code)
        same("out")
        shutil.rmtree("out")
    with open("/dev/full", "w") as full:
        done = run(["inspect", "src"], stdout=full)
        check(done.returncode == 4 and b"stdout" in done.stderr, done)
        check(run(["inspect", "src"], stderr=full).returncode == 0,
              "stderr is full")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody:
        done = run(["inspect", "src", "--json"], stdout=nobody)
    check(done.returncode == 4, "a pipe that nobody reads", done)


def odd_paths():
    """Paths are bytes: not UTF-8, with newlines, long, beginning with a dash."""
    for name in (b"\xff\xfe", b"a\nb", b"\x1b[31m", b"-out", b" ",
                 b"x" * 200, "\u00fc".encode()):
        src, out = b"./s" + name, b"./o" + name
        os.rename("src", src)
        done = run(["convert", src, out, "--ep", "2", "--json"])
        os.rename(src, "src")
        check(done.returncode == 0, name, done)
        json.loads(done.stdout)
        with open(os.path.join(out, b"provenance.json")) as f:
            json.load(f)
        same(os.fsdecode(out))
        check(run(["verify", out]).returncode == 0, name, "verify")
        shutil.rmtree(out)
    with open(b"src/\xff\n.txt", "w") as f:
        f.write("no manifest can name it")
    done = run(CONVERT)
    check(done.returncode == 0 and b"not UTF-8" in done.stderr, done)
    check(run(["verify", "out"]).returncode == 0, "verify")
    os.unlink(b"src/\xff\n.txt")
    done = run(["convert", "src", b"x" * 250, "--ep", "2"])
    check(done.returncode == 2 and b"too long" in done.stderr, done)


def umasks():
    """The umask alone decides who may read a result."""
    for mask, want in ((0o022, 0o644), (0o077, 0o600), (0o000, 0o666)):
        old = os.umask(mask)
        done = run(CONVERT)
        os.umask(old)
        check(done.returncode == 0, oct(mask), done)
        for name in os.listdir("out"):
            mode = stat.S_IMODE(os.stat(os.path.join("out", name)).st_mode)
            check(mode == want, name, "has mode", oct(mode), "of", oct(want))
        same("out")
        shutil.rmtree("out")


def two_writers():
    """Several writers at one destination: one result, and the others say that
    it is locked (6) or there (2)."""
    seen = {}
    for _ in range(4):
        children = [subprocess.Popen([scenes.PROGRAM, *CONVERT],
                                     stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL)
                    for _ in range(4)]
        codes = [c.wait() for c in children]
        for c in codes:
            seen[c] = seen.get(c, 0) + 1
        check(codes.count(0) == 1 and set(codes) <= {0, 2, 6}, codes)
        same("out")
        check(not os.path.exists("out.partial"), "out.partial is left")
        shutil.rmtree("out")
    # --force: every one may win, one after the other
    children = [subprocess.Popen([scenes.PROGRAM, *CONVERT, "--force"],
                                 stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
                for _ in range(4)]
    codes = [c.wait() for c in children]
    check(0 in codes and set(codes) <= {0, 6}, "--force", codes)
    same("out")
    return "exits %s" % seen


def stopped():
    """SIGINT and SIGTERM at any moment: 130 and 143, or done."""
    for i in range(12):
        sent = (signal.SIGINT, signal.SIGTERM)[i % 2]
        child = subprocess.Popen([scenes.PROGRAM, *CONVERT],
                                 stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        time.sleep(0.002 * i)
        child.send_signal(sent)
        code = child.wait()
        check(code in (0, 128 + sent, -sent), code)
        if code == 0:
            same("out")
            shutil.rmtree("out")
    check(run(CONVERT).returncode == 0, "afterwards")
    same("out")


CASES = [malformed, not_files, not_outputs, escapes, changing, names,
         descriptors, few_descriptors, address_space, little_memory,
         file_size, full_disk, read_only_disk, streams, odd_paths, umasks,
         two_writers, stopped]


def run_case(case, scratch):
    where = os.path.join(scratch, case.__name__)
    os.mkdir(where)
    scenes.copy_source(os.path.join(ROOT, "fixtures", "checkpoints",
                                    "mixtral"), os.path.join(where, "src"))
    shutil.copytree(os.path.join(scratch, "want"), os.path.join(where, "want"))
    os.chdir(where)
    begin = time.monotonic()
    try:
        said = case() or ""
        word = "ok"
    except Skip as e:
        said, word = e, "skipped"
    except (Failure, OSError, ValueError) as e:
        said, word = e, "FAILED"
    os.chdir(scratch)
    print("%-16s %-8s %5.2f s  %s" % (case.__name__, word,
                                      time.monotonic() - begin, said),
          flush=True)
    return word != "FAILED"


def main():
    scenes.die_without(scenes.SHIM)
    for name in scenes.CONFLICTING:
        os.environ.pop(name, None)
    wanted = sys.argv[1:]
    cases = [c for c in CASES if not wanted or c.__name__ in wanted]
    with tempfile.TemporaryDirectory() as scratch:
        scenes.copy_source(os.path.join(ROOT, "fixtures", "checkpoints",
                                        "mixtral"),
                           os.path.join(scratch, "src"))
        scenes.must(["convert", "src", "want", "--ep", "2"], scratch)
        good = [run_case(c, scratch) for c in cases]
    print("%d cases, %d failed" % (len(good), good.count(False)))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
