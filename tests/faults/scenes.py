# SPDX-License-Identifier: Apache-2.0
"""What the sweeps run: commands on a small checkpoint, and what must be there
in the end. A scene is a command, the directory that it begins in, and the
commands that finish what it began."""

import filecmp
import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.append(os.path.join(ROOT, "tests", "store"))
import server  # noqa: E402
PROGRAM = os.environ.get(
    "MOEC_CONVERT", os.path.join(ROOT, "build", "dev", "moe-convert"))
SHIM = os.environ.get("MOEC_SHIM", "")
CONFLICTING = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "LD_PRELOAD")


class Scene:
    """argv runs in a copy of `begin` (None: an empty directory). `result`: the
    directory or file that must be as in an undisturbed run, None where the
    command only reads; `code`: what it exits with then; `env`: variables; `rest`: commands between argv and the result. `replaces`: the
    result is there from the begin, in another form. `same`: what argv prints
    is the same each time. `holds` raises Failure where what is elsewhere than
    in the directory is not right, before the end and at it (whole). "{run}" in
    argv is the directory's name."""

    def __init__(self, name, argv, result=None, begin=None, rest=(),
                 replaces=False, same=True, holds=None, code=0, env=None):
        self.name, self.argv, self.result = name, argv, result
        self.code, self.env = code, env or {}
        self.begin, self.rest = begin, [list(a) for a in rest]
        self.replaces, self.same = replaces, same
        self.holds = holds or (lambda cwd, whole: None)
        self.remote = any("://" in word for word in argv)
        self.want = None


class Failure(Exception):
    pass


def spelled(argv, cwd):
    return [PROGRAM] + [a.replace("{run}", os.path.basename(cwd))
                        for a in argv]


def environment(more=()):
    return {**{k: v for k, v in os.environ.items() if k not in CONFLICTING},
            **dict(more)}


def run(argv, cwd, shim=None, timeout=60, env=()):
    env = environment(env)
    if shim is not None:
        # The shim writes its reports where the sandbox lets nobody write.
        env.update(shim, LD_PRELOAD=SHIM, MOEC_FAULT_NOSYNC="1",
                   MOEC_NO_SANDBOX="1")
    return subprocess.run(spelled(argv, cwd), cwd=cwd, env=env,
                          timeout=timeout, stdin=subprocess.DEVNULL,
                          capture_output=True)


def must(argv, cwd, code=0, env=()):
    done = run(argv, cwd, env=env)
    if done.returncode != code:
        raise Failure("undisturbed %s: exit %d, %s" % (
            argv, done.returncode, done.stderr.decode(errors="replace")))
    return done


def differs(want, got):
    """A sentence on the first difference of two directories, or None. What
    provenance.json says differs by design."""
    if not os.path.exists(got):
        return "%s is not there" % os.path.basename(got)
    if not os.path.isdir(want):
        same = filecmp.cmp(want, got, False)
        return None if same else "%s has other bytes" % os.path.basename(got)
    names = sorted(os.listdir(want))
    if names != sorted(os.listdir(got)):
        return "other files: %s" % sorted(os.listdir(got))
    for name in names:
        if name != "provenance.json" and not filecmp.cmp(
                os.path.join(want, name), os.path.join(got, name), False):
            return "%s has other bytes" % name
    return None


def answer(done):
    """What a command that only reads has said, less the seconds."""
    try:
        text = json.loads(done.stdout)
        if isinstance(text, list):
            return json.dumps(text)
        for key in ("seconds", "gb_per_s", "peak_rss_bytes", "bytes_per_second",
                    "timings"):
            text.pop(key, None)
        return json.dumps(text, sort_keys=True)
    except ValueError:
        return done.stdout.decode(errors="replace")


def make_key(path):
    """A new P-256 key, and PATH.pub; False where nobody makes one."""
    try:
        return all(subprocess.run(["openssl", *words], capture_output=True)
                   .returncode == 0 for words in (
            ["ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out",
             path], ["ec", "-in", path, "-pubout", "-out", path + ".pub"]))
    except OSError:
        return False


def signatures(scratch, made):
    """What signs, and what wants a signature; nothing without openssl."""
    if not make_key(os.path.join(scratch, "key")):
        return []
    signed = os.path.join(scratch, "signed")
    shutil.copytree(made, signed)
    check = ["verify-signature", "conv", "--key", "../key.pub"]
    must(["sign", "conv", "--key", "../key"], signed)

    def no_torn_signature(cwd, whole):
        path = os.path.join(cwd, "conv", "model.sig")
        if whole or os.path.exists(path):
            must(check, cwd)

    return [
        Scene("sign", ["sign", "conv", "--key", "../key", "--force"],
              begin=made, same=False, rest=[check], holds=no_torn_signature),
        Scene("verify-sig", ["verify-signature", "../signed/conv", "--key",
                             "../key.pub", "--json"]),
        Scene("load-signed", ["load", "../signed/conv", "--rank", "1",
                              "--require-signature", "../key.pub", "--json"],
              same=False),
    ]


def uploads(made, more):
    """To a server in this process; nothing where URLs are not built in."""
    store = server.Store()
    _, url = server.serve(store)
    os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="me",
                      AWS_SECRET_ACCESS_KEY="secret", no_proxy="127.0.0.1")
    files = {}
    for name in os.listdir(os.path.join(made, "conv")):
        with open(os.path.join(made, "conv", name), "rb") as f:
            files[name] = f.read()

    def manifest_means_all(cwd, whole):
        prefix = "models/%s/" % os.path.basename(cwd)
        there = {k[len(prefix):]: v for k, v in list(store.objects.items())
                 if k.startswith(prefix)}
        if (whole or "manifest.json" in there) and there != files:
            raise Failure("at the server: %s" % sorted(there))
        if whole:  # the next run there begins anew
            for name in there:
                del store.objects[prefix + name]

    scene = Scene("upload", ["upload", "../made/conv", "s3://models/{run}",
                             "--force", "--json"], same=False,
                  holds=manifest_means_all)
    done = run(scene.argv, made)
    if done.returncode == 3:
        return []
    return [scene] + (list(more.behind_urls(store, made)) if more else [])


def copy_source(fixture, to):
    os.mkdir(to)
    for name in os.listdir(fixture):
        if name != "golden.safetensors":
            shutil.copy(os.path.join(fixture, name), to)


def build(scratch, names=None, more=None):
    """Make the scenes below `scratch`, with what each begins in and ends in.
    `more` (commands.py) has a smaller model, and others for it."""
    fixtures = os.path.join(ROOT, "fixtures", "checkpoints")
    if more:
        more.tiny(os.path.join(scratch, "src"))
    else:
        copy_source(os.path.join(fixtures, "mixtral"),
                    os.path.join(scratch, "src"))
    copy_source(os.path.join(fixtures, "gpt_oss"),
                os.path.join(scratch, "turned"))
    one = ["--threads", "1"]
    convert = ["convert", "../src", "out", "--ep", "2", "--redundant", "2"] + one
    ranks = ["convert", "../src", "out", "--ep", "2", *one, "--ranks"]
    made = os.path.join(scratch, "made")
    os.mkdir(made)
    must(["convert", "../src", "conv", "--ep", "2", *one], made)
    old = os.path.join(scratch, "old")
    os.mkdir(old)
    must(["convert", "../src", "out", "--ep", "4", *one], old)
    placed = os.path.join(scratch, "placed")
    os.mkdir(placed)
    must(["convert", "../src", "out", "--ep", "2", *one], placed)
    with open(os.path.join(scratch, "map.json"), "w") as f:
        json.dump([[1, 0, 2, 3], [0, 1, 2, 3]] if more else
                  [[1, 0, 2, 3, 4, 5, 6, 7], list(range(8)),
                   [7, 6, 5, 4, 3, 2, 1, 0]], f)
    halves = os.path.join(scratch, "halves")
    os.mkdir(halves)
    for k in "0", "1":
        must(ranks + [k], halves)
    scenes = [
        Scene("convert", convert, "out"),
        Scene("turned", ["convert", "../turned", "out", "--ep", "4",
                         "--hash-source", *one], "out"),
        Scene("store", ["convert", "../src", "out", "--shard-by", "expert",
                        *one], "out"),
        Scene("again", ["convert", "../made/conv", "out", "--ep", "4", *one],
              "out"),
        Scene("force", convert + ["--force"], "out", begin=old, replaces=True),
        Scene("place", ["place", "out", "--placement", "../map.json", *one],
              "out", begin=placed, replaces=True),
        Scene("place-out", ["place", "../made/conv", "--placement",
                            "../map.json", "--out", "out", *one], "out"),
        Scene("ranks", ranks + ["0"], "out",
              rest=[ranks + ["1"], ["finalize", "out", "--quiet"]]),
        Scene("finalize", ["finalize", "out", "--quiet"], "out",
              begin=halves),
        Scene("unconvert", ["unconvert", "../made/conv", "out", *one], "out"),
        Scene("verify", ["verify", "../made/conv", "--source", "../src",
                         "--threads", "1", "--json"]),
        Scene("inspect", ["inspect", "../turned", "--json"]),
        Scene("plan", ["plan", "../src", "--ep", "2", "--json"]),
        Scene("explain", ["explain", "../made/conv", "--layer", "1",
                          "--expert", "3", "--json"]),
        Scene("check", ["check", "../src", "--ep", "2",
                        "--json"]),
        Scene("validate", ["validate", "../made/conv", "--source", "../src",
                           "--threads", "1", "--json"]),
        Scene("selftest", ["selftest", "--json"]),
        Scene("load", ["load", "../made/conv", "--rank", "1", "--json"],
              same=False),
        Scene("load-source", ["load", "../turned", "--rank", "1", "--ep", "2",
                              "--common", "--json"], same=False),
        Scene("placement", ["placement", "check", "../map.json", "--json"]),
    ]
    scenes += signatures(scratch, made)
    if not names or more or "upload" in names:
        scenes += uploads(made, more)
    if more:  # built in are vectors for kernels, 285,000 values of JSON
        scenes = [s for s in scenes if s.name != "selftest"]
        scenes += more.build(scratch)
    if names:
        scenes = [s for s in scenes if s.name in names]
    for s in scenes:
        undisturbed(s, scratch)
    return scenes


def fresh(scene, scratch, label):
    """A directory to run the scene in. The label makes it the caller's own."""
    cwd = os.path.join(scratch, "run-%s" % label)
    shutil.rmtree(cwd, ignore_errors=True)
    if scene.begin:
        shutil.copytree(scene.begin, cwd)
    else:
        os.mkdir(cwd)
    return cwd


def state(cwd):
    """What a run would have to touch to leave anything behind."""
    return {path: (s.st_ino, s.st_size, s.st_mtime_ns)
            for path, s in ((p, os.lstat(p)) for d, dirs, files in os.walk(cwd)
                            for p in (os.path.join(d, f)
                                      for f in dirs + files))}


def undisturbed(scene, scratch):
    cwd = fresh(scene, scratch, "first")
    done = must(scene.argv, cwd, scene.code, scene.env)
    scene.said = answer(done)
    for argv in scene.rest:
        must(argv, cwd)
    scene.holds(cwd, True)
    if scene.result:
        scene.want = os.path.join(scratch, "want-" + scene.name)
        os.rename(os.path.join(cwd, scene.result), scene.want)


def finished(scene, cwd):
    """The result is there, whole, and nothing beside it."""
    why = differs(scene.want, os.path.join(cwd, scene.result))
    left = sorted(set(os.listdir(cwd)) - {scene.result})
    if why or left:
        raise Failure(why or "left behind: %s" % left)


def go_on(scene, cwd, same=None):
    """Run what a person would: the same command (`same` runs it), and the rest.
    'again' where it came to the result, 'there' where the result was there
    already."""
    same = same or (lambda: must(scene.argv, cwd, scene.code, scene.env))
    if not scene.result:
        done = same()
        if scene.same and answer(done) != scene.said:
            raise Failure("another answer afterwards")
        for argv in scene.rest:
            must(argv, cwd)
        scene.holds(cwd, True)
        return "again"
    if scene.replaces:
        same()
        finished(scene, cwd)
        return "again"
    exists = os.path.exists(os.path.join(cwd, scene.result))
    if exists and differs(scene.want, os.path.join(cwd, scene.result)) is None:
        finished(scene, cwd)
        return "there"
    same()
    for argv in scene.rest:
        must(argv, cwd)
    finished(scene, cwd)
    return "again"


def die_without(*needed):
    if not os.access(PROGRAM, os.X_OK):
        sys.exit("no program at %s: build it, or set MOEC_CONVERT" % PROGRAM)
    for path in needed:
        if not path or not os.path.exists(path):
            sys.exit("set MOEC_SHIM to the library that tests/faults/shim.c "
                     "makes")
