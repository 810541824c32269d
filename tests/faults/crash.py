# SPDX-License-Identifier: Apache-2.0
"""The power goes at any moment:

    python3 tests/faults/crash.py [--all] [--scenes NAME,...] [--points N]

One run of a command is recorded: what it wrote, synced, made, renamed and
deleted, in order (tests/faults/shim.c). Then, for each prefix of that, what a
disk may hold after a crash at that moment is put into a directory, and the same
command runs there. It must find a finished result, or go on to the same bytes.

What a disk may hold:
  killed    all of it: the process died, not the machine
  synced    nothing that was not synced: a name counts when its directory was
            synced, bytes when their file was
  ordered   names in order up to a point behind the last sync of anything, and
            any subset of the 4 KiB blocks written since a file's own sync
  chaos     any subset of names as well, each directory for itself

After the last three the kernel has another boot id, and nothing counts but what
the journal's marks cover; the clock jumps, so that there are marks. A
directory that is not known as ours any more may be refused (exit 2, nothing
touched): the table counts that, and "killed" and "ordered" must have none."""

import argparse
import collections
import concurrent.futures
import os
import random
import sys
import tempfile

import scenes
import sweep
from scenes import Failure

BLOCK = 4096
MODELS = ("killed", "synced", "ordered", "chaos")
SCENES = ("convert", "turned", "store", "again", "force", "ranks", "finalize",
          "unconvert", "place", "place-out", "sign")
OURS = "user.moec.partial"


class Inode:
    def __init__(self, is_dir=False, data=b"", attributes=()):
        self.is_dir = is_dir
        self.data = bytearray(data)
        self.names = {}
        self.attributes = set(attributes)
        # as of the last sync, and what happened since
        self.safe_data = bytes(data)
        self.safe_names = {}
        self.safe_attributes = set(attributes)
        self.loose = []  # (offset, bytes) or ("size", n)
        # another name of the file where nobody has written: a journal names
        # its sources by their inodes
        self.kept = None

    def write(self, off, data):
        end = off + len(data)
        if len(self.data) < end:
            self.data.extend(bytes(end - len(self.data)))
        self.kept = None
        self.data[off:end] = data
        self.loose.append((off, data))

    def resize(self, n, shrink):
        self.kept = None
        if n > len(self.data):
            self.data.extend(bytes(n - len(self.data)))
        elif shrink:
            del self.data[n:]
        self.loose.append(("size", n, shrink))

    def sync(self):
        self.safe_data = bytes(self.data)
        self.safe_names = dict(self.names)
        self.safe_attributes = set(self.attributes)
        self.loose = []

    def some_data(self, rng):
        """Its bytes after a crash: each block written since the sync is there
        or is not."""
        out = bytearray(self.safe_data)
        for change in self.loose:
            if change[0] == "size":
                if change[1] > len(out):
                    out.extend(bytes(change[1] - len(out)))
                elif change[2] and rng.random() < 0.5:
                    del out[change[1]:]
                continue
            off, data = change
            for at in range(0, len(data), BLOCK):
                piece = data[at:at + BLOCK]
                if rng.random() < 0.5:
                    continue
                if len(out) < off + at + len(piece):
                    out.extend(bytes(off + at + len(piece) - len(out)))
                out[off + at:off + at + len(piece)] = piece
        return bytes(out)


class Disk:
    """The directory that a command ran in, as its record tells."""

    def __init__(self, root, kept):
        self.kept = kept
        os.mkdir(kept)
        self.top = self.load(root)

    def load(self, path):
        self.by_number = getattr(self, "by_number", {})
        node = Inode(True)
        self.by_number[os.stat(path).st_ino] = node
        for name in os.listdir(path):
            inner = os.path.join(path, name)
            if os.path.isdir(inner):
                child = self.load(inner)
            else:
                with open(inner, "rb") as f:
                    child = Inode(False, f.read())
                number = os.stat(inner).st_ino
                child.kept = os.path.join(self.kept, str(number))
                os.link(inner, child.kept)
                self.by_number[number] = child
            node.names[name] = child
        if OURS in os.listxattr(path):
            node.attributes.add(OURS)
        node.sync()
        return node

    def apply(self, op, data):
        """One line of the record. Returns the node that it synced, if any."""
        word, _, rest = op.partition(" ")
        if word in ("create", "mkdir"):
            parent, number, name = rest.split(" ", 2)
            node = Inode(word == "mkdir")
            self.by_number[int(number)] = node
            self.by_number[int(parent)].names[name] = node
        elif word == "write":
            number, off, _ = rest.split()
            self.by_number[int(number)].write(int(off), data)
        elif word in ("extend", "truncate"):
            number, n = rest.split()
            self.by_number[int(number)].resize(int(n), word == "truncate")
        elif word == "sync":
            self.by_number[int(rest)].sync()
        elif word == "rename":
            a, b, flags, names = rest.split(" ", 3)
            old, new = names.split("\t")
            a, b = self.by_number[int(a)].names, self.by_number[int(b)].names
            if flags == "2":
                a[old], b[new] = b[new], a[old]
            else:
                b[new] = a.pop(old)
        elif word == "unlink":
            parent, name = rest.split(" ", 1)
            del self.by_number[int(parent)].names[name]
        elif word in ("attribute", "no_attribute"):
            number, name = rest.split()
            kept = self.by_number[int(number)].attributes
            (kept.add if word == "attribute" else kept.discard)(name)
        else:
            raise Failure("the record has a line '%s'" % op)

    def store(self, path, names_of, data_of, attributes_of, node=None):
        node = node or self.top
        os.makedirs(path, exist_ok=True)
        for name, child in names_of(node).items():
            inner = os.path.join(path, name)
            if child.is_dir:
                self.store(inner, names_of, data_of, attributes_of, child)
            elif child.kept:
                os.link(child.kept, inner)
            else:
                with open(inner, "wb") as f:
                    f.write(data_of(child))
        for name in attributes_of(node):
            os.setxattr(path, name, b"1")


def some_names(node, rng):
    out = {}
    for name in sorted(set(node.names) | set(node.safe_names)):
        before, now = node.safe_names.get(name), node.names.get(name)
        kept = now if rng.random() < 0.5 else before
        if kept is not None:
            out[name] = kept
    return out


class Record:
    def __init__(self, scene, scratch):
        self.scene, self.scratch = scene, scratch
        self.cwd = scenes.fresh(scene, scratch, "record")
        self.first = Disk(self.cwd, os.path.join(
            scratch, "kept-" + scene.name))
        name = os.path.join(scratch, "record-" + scene.name)
        done = scenes.run(scene.argv, self.cwd, {
            "MOEC_FAULT_RECORD": name, "MOEC_FAULT_CLOCK": "31"})
        if done.returncode != 0:
            raise Failure("recording %s: exit %d, %s" % (
                scene.name, done.returncode, done.stderr.decode()))
        self.ops = []
        with open(name) as f, open(name + ".data", "rb") as bytes_:
            for line in f:
                op = line.rstrip("\n")
                data = None
                if op.startswith("write "):
                    data = bytes_.read(int(op.split()[3]))
                self.ops.append((op, data))

    def disk(self):
        """The first state again, by copying the one that was loaded."""
        disk = Disk.__new__(Disk)
        disk.by_number, twins = {}, {}

        def twin(node):
            if id(node) not in twins:
                new = Inode(node.is_dir, node.data, node.attributes)
                new.kept = node.kept
                twins[id(node)] = new
                new.names = {k: twin(v) for k, v in node.names.items()}
                new.sync()
            return twins[id(node)]
        disk.top = twin(self.first.top)
        for number, node in self.first.by_number.items():
            disk.by_number[number] = twins[id(node)]
        return disk

    def after(self, k):
        disk = self.disk()
        for op, data in self.ops[:k]:
            disk.apply(op, data)
        return disk

    def put(self, path, k, model, rng):
        if model == "killed":
            self.after(k).store(path, lambda n: n.names, lambda n: n.data,
                                lambda n: n.attributes)
        elif model == "synced":
            self.after(k).store(path, lambda n: n.safe_names,
                                lambda n: n.safe_data,
                                lambda n: n.safe_attributes)
        elif model == "ordered":
            # Names may be as they were at any point since the last sync.
            last = max([i + 1 for i, (op, _) in enumerate(self.ops[:k])
                        if op.startswith("sync ")], default=0)
            self.after(rng.randint(last, k)).store(
                path, lambda n: n.names, lambda n: n.some_data(rng),
                lambda n: n.attributes)
        else:
            self.after(k).store(
                path, lambda n: some_names(n, rng), lambda n: n.some_data(rng),
                lambda n: n.attributes if rng.random() < 0.5
                else n.safe_attributes)


def refused(scene, cwd):
    """The run after the crash may not touch what it does not know."""
    def state():
        return sorted((d, sorted(f)) for d, _, f in os.walk(cwd))
    before = state()
    done = scenes.run(scene.argv, cwd, {"MOEC_FAULT_BOOT": other_boot()})
    said = done.stderr.decode(errors="replace")
    if done.returncode != 2 or "not left over from a conversion" not in said:
        raise Failure("exit %d: %s" % (done.returncode, said.strip()))
    if state() != before:
        raise Failure("refused, and changed what is there")


def other_boot():
    path = os.path.join(tempfile.gettempdir(), "moec-boot-%d" % os.getpid())
    if not os.path.exists(path):
        with open(path, "w") as f:
            f.write("00000000-1111-2222-3333-444444444444\n")
    return path


def whole(scene, place):
    return scenes.differs(scene.want, place) is None


def run_after(record, point):
    k, model, seed = point
    scene, label = record.scene, sweep.label()
    cwd = os.path.join(record.scratch, "run-" + label)
    sweep.shutil.rmtree(cwd, ignore_errors=True)
    record.put(cwd, k, model, random.Random(seed))
    shim = {} if model == "killed" else {"MOEC_FAULT_BOOT": other_boot()}
    if not scene.result: # a file in what was there before
        scene.holds(cwd, False)
        scenes.go_on(scene, cwd)
        return "anew"
    out = os.path.join(cwd, scene.result)
    if os.path.isdir(out) and not scene.replaces:
        # There is a result: then it is all there, whatever got lost.
        why = scenes.differs(scene.want, out)
        if why:
            raise Failure("a result that is not whole: " + why)
        # chaos lets both names of a rename survive, which is one directory
        # under two names: the one that counts is whole
        if not os.path.exists(out + ".partial") or model == "chaos":
            return "there"
    if scene.replaces and not whole(scene, out) and not whole_old(scene, out):
        raise Failure("neither the old result nor the new one")
    resumed = False
    for argv in [scene.argv, *scene.rest]:
        done = scenes.run(argv, cwd, shim)
        if done.returncode == 2 and model in ("synced", "chaos"):
            refused(scene, cwd)
            return "refused"
        if scene.name == "finalize" and done.returncode == 3 and \
                model == "chaos":
            return "refused"
        if done.returncode != 0:
            raise Failure("exit %d: %s" % (
                done.returncode, done.stderr.decode(errors="replace")))
        resumed = resumed or b"going on" in done.stderr
    scenes.finished(scene, cwd)
    return "went on" if resumed else "anew"


def whole_old(scene, out):
    old = os.path.join(scene.begin, scene.result)
    return any(os.path.isdir(p) and scenes.differs(old, p) is None
               for p in (out, out + ".replaced"))


def points_of(record, opts, rng):
    ks = range(len(record.ops) + 1)
    for model in MODELS:
        some = ks if opts.all else sorted(
            rng.sample(ks, min(opts.points, len(ks))))
        for k in some:
            for seed in range(4 if opts.all and model in ("ordered", "chaos")
                              else 1):
                yield k, model, seed


def attempt(record, point):
    try:
        return point[1], run_after(record, point), None
    except (Failure, OSError) as e:
        k, model, seed = point
        return model, "FAILED", "%s, %s, after call %d of %d (%s), seed %d: %s" % (
            record.scene.name, model, k, len(record.ops),
            record.ops[k - 1][0] if k else "none", seed, e)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--scenes", default=",".join(SCENES))
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    opts = parser.parse_args()
    scenes.die_without(scenes.SHIM)
    rng = random.Random(opts.seed)
    failures, total = [], 0
    ends = ("went on", "anew", "there", "refused", "FAILED")
    print("%-10s %-8s %7s %8s %7s %7s %8s %7s" % (
        "command", "disk", "crashes", "went on", "anew", "whole", "refused",
        "FAILED"))
    with tempfile.TemporaryDirectory() as scratch:
        for scene in scenes.build(scratch, opts.scenes.split(",")):
            record = Record(scene, scratch)
            points = list(points_of(record, opts, rng))
            with concurrent.futures.ThreadPoolExecutor(opts.jobs) as pool:
                got = list(pool.map(lambda p: attempt(record, p), points))
            failures += [why for _, _, why in got if why]
            total += len(got)
            for model in MODELS:
                n = collections.Counter(e for m, e, _ in got if m == model)
                print("%-10s %-8s %7d %8d %7d %7d %8d %7d" % (
                    scene.name, model, sum(n.values()), *(n[e] for e in ends)),
                    flush=True)
        if os.path.exists(other_boot()):
            os.unlink(other_boot())
    for why in failures[:30]:
        print("FAIL:", why)
    print("%d crashes, %d failed" % (total, len(failures)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
