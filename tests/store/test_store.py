# SPDX-License-Identifier: Apache-2.0
"""store/ against a server with faults. Environment: STORE_DRIVER."""
import json
import os
import random
import subprocess
import tempfile
import unittest

from server import Store, serve

DRIVER = os.environ["STORE_DRIVER"]
FORMAT, IO, ARG, LOCKED = 4, 3, 1, 10


class StoreTest(unittest.TestCase):
    def setUp(self):
        self.store = Store()
        self.server, self.url = serve(self.store)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def run_driver(self, url, *words, **env):
        env = {"STORE_ENDPOINT": self.url, "STORE_KEY": "me",
               "STORE_SECRET": "secret", "STORE_TRIES": "4", **env}
        keep = {k: v for k, v in os.environ.items()
                if "proxy" not in k.lower()}
        p = subprocess.run([DRIVER, url, *words], capture_output=True,
                           env={**keep, **env}, timeout=60)
        return p.returncode, p.stdout, p.stderr.decode()

    def s3(self, *words, **env):
        return self.run_driver("s3://bucket/models/V3/", *words, **env)

    def fill(self):
        data = random.Random(1).randbytes(300_000)
        for name in ("model.safetensors", "config.json", "with & sign",
                     "a+b%20.json"):
            self.store.objects["bucket/models/V3/" + name] = data
        self.store.objects["bucket/models/V3/below/x"] = b"1"
        self.store.objects["bucket/models/V30"] = b"1"
        return data

    def test_lists_what_is_directly_below_over_pages(self):
        data = self.fill()
        for page in (1000, 2, 1):
            self.store.page = page
            code, out, err = self.s3("list")
            self.assertEqual(code, 0, err)
            self.assertEqual(
                {line.rsplit(" ", 2)[0] for line in out.decode().split("\n")
                 if line},
                {"model.safetensors", "config.json", "with & sign",
                 "a+b%20.json"})
            self.assertIn(f"config.json {len(data)} ", out.decode())

    def test_reads_ranges_and_names_the_version(self):
        data = self.fill()
        for name in ("model.safetensors", "with & sign", "a+b%20.json"):
            for off, n in ((0, 1), (5, 70_000), (299_999, 1), (0, 300_000)):
                code, out, err = self.s3("read", name, str(off), str(n))
                self.assertEqual(code, 0, err)
                self.assertEqual(out, data[off:off + n])
        self.assertEqual(self.store.log[-1][2]["If-Match"],
                         self.store.etag("bucket/models/V3/" + name))
        self.assertIn("AWS4-HMAC-SHA256", self.store.log[-1][2]
                      ["Authorization"])

    def test_tries_again_what_may_pass(self):
        data = self.fill()
        for fault in ("500", "503", "429", "drop", "short", "wrong-range"):
            self.store.faults = [fault] * 3
            code, out, err = self.s3("read", "config.json", "7", "1000")
            if fault in ("short", "wrong-range"):
                self.assertEqual((code, out), (0, data[7:1007]), err)
            else:  # the listing meets them
                self.assertEqual((code, out), (0, data[7:1007]), err)
            self.assertIn("retries 3", err)
            self.assertEqual(self.store.faults, [])

    def test_gives_up_with_the_servers_words(self):
        self.fill()
        self.store.faults = ["503"] * 4
        code, _, err = self.s3("list")
        self.assertEqual(code, IO)
        self.assertIn("status 503 after 4 tries", err)
        self.assertIn("\\x1b[31m Down", err)
        self.store.faults = ["403"]
        code, _, err = self.s3("list")
        self.assertEqual(code, IO)
        self.assertIn("access denied", err)
        self.assertIn("requests 0", err + "requests 0")
        self.server.shutdown()
        self.server.server_close()
        code, _, err = self.s3("list", STORE_TRIES="2")
        self.assertEqual(code, IO)
        self.assertIn("after 2 tries", err)

    def test_gives_up_on_a_server_that_is_silent(self):
        self.fill()
        self.store.faults = ["stall"] * 2
        code, _, err = self.s3("list", STORE_TRIES="2",
                               STORE_TIMEOUT_MS="1000")
        self.assertEqual(code, IO, err)

    def test_never_mixes_two_versions(self):
        """The object changes between the listing and the read."""
        self.fill()
        key = "bucket/models/V3/config.json"
        for ignore in (False, True):
            self.store.ignore_match = ignore
            real = self.store.etag
            self.store.etag = lambda k: '"old"' \
                if k == key and len(self.store.log) < seen + 2 else real(k)
            seen = len(self.store.log)
            code, _, err = self.s3("read", "config.json", "0", "10")
            self.store.etag = real
            self.assertEqual(code, FORMAT, err)
            self.assertIn("MOE-I13", err)
            self.assertIn('"old"', err)

    def test_says_when_ranges_are_ignored(self):
        self.fill()
        self.store.ignore_range = True
        code, _, err = self.s3("read", "config.json", "10", "100")
        self.assertEqual(code, IO)
        self.assertIn("byte ranges", err)

    def test_refuses_what_is_not_there(self):
        self.fill()
        code, _, err = self.run_driver("s3://bucket/models/V4", "list")
        self.assertEqual(code, FORMAT)
        self.assertIn("MOE-I01", err)
        for url in ("s3://", "s3://B_CKET/x", "ftp://bucket/x", "s3:/bucket"):
            code, _, err = self.run_driver(url, "list")
            self.assertEqual(code, ARG, url)

    def test_writes_with_checksums(self):
        for size in (0, 1, 100_000, (16 << 20) + 1, 40 << 20):
            data = random.Random(size).randbytes(size)
            with tempfile.NamedTemporaryFile() as f:
                f.write(data)
                f.flush()
                self.store.faults = ["500", "drop"]
                code, _, err = self.s3("put", "new file", f.name)
                self.assertEqual(code, 0, err)
                self.assertEqual(
                    self.store.objects["bucket/models/V3/new file"], data)
                self.assertEqual(self.store.uploads, {})

    def test_a_fresh_object_replaces_none(self):
        with tempfile.NamedTemporaryFile() as f:
            f.write(b"one")
            f.flush()
            self.assertEqual(self.s3("put", "manifest", f.name, "fresh")[0], 0)
            code, _, err = self.s3("put", "manifest", f.name, "fresh")
            self.assertEqual(code, LOCKED)
            self.assertIn("there already", err)

    def test_gives_up_an_upload_that_fails(self):
        with tempfile.NamedTemporaryFile() as f:
            f.write(bytes(20 << 20))
            f.flush()
            self.store.faults = ["late"]
            code, _, err = self.s3("put", "big", f.name)
            self.assertEqual(code, IO)
            self.assertIn("InternalError", err)
            self.assertEqual((self.store.objects, self.store.uploads), ({},
                                                                        {}))

    def test_a_plain_server_has_what_its_index_names(self):
        data = self.fill()
        base = "plain/V3/"
        index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors",
                                "c": "m-1.safetensors", "d": "../x"}}
        self.store.objects = {
            base + "model.safetensors.index.json": json.dumps(index).encode(),
            base + "m-1.safetensors": data, base + "m-2.safetensors": data,
            base + "config.json": b"{}", base + "other.safetensors": data}
        url = self.url + "/plain/V3"
        code, out, err = self.run_driver(url, "list")
        self.assertEqual(code, 0, err)
        self.assertEqual({line.split()[0] for line in out.decode().split("\n")
                          if line},
                         {"model.safetensors.index.json", "m-1.safetensors",
                          "m-2.safetensors", "config.json"})
        code, out, err = self.run_driver(url, "read", "m-2.safetensors", "9",
                                         "99")
        self.assertEqual((code, out), (0, data[9:108]), err)
        self.assertNotIn("Authorization", self.store.log[-1][2])
        code, out, err = self.run_driver(url, "stat", "m-1.safetensors")
        self.assertEqual((code, out), (0, b"same\n"), err)
        self.assertEqual(self.run_driver(url + "?x=1", "list")[0], ARG)


class CommandLine(unittest.TestCase):
    """moe-convert over URLs: MOEC_CONVERT and MOEC_ROOT."""

    def setUp(self):
        self.store = Store()
        self.server, self.url = serve(self.store)
        self.tmp = tempfile.TemporaryDirectory()
        fixture = os.path.join(os.environ["MOEC_ROOT"], "fixtures",
                               "checkpoints", "deepseek_v3")
        self.source = os.path.join(self.tmp.name, "source")
        os.mkdir(self.source)
        for name in os.listdir(fixture):  # what a hub has of a model
            if name.startswith(("model", "config", "generation")):
                with open(os.path.join(fixture, name), "rb") as f:
                    data = self.store.objects["models/V3/" + name] = f.read()
                with open(os.path.join(self.source, name), "wb") as f:
                    f.write(data)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.addCleanup(self.tmp.cleanup)

    def run_convert(self, *words, want=0):
        keep = {k: v for k, v in os.environ.items()
                if "proxy" not in k.lower()}
        p = subprocess.run([os.environ["MOEC_CONVERT"], *words],
                           capture_output=True, cwd=self.tmp.name, timeout=60,
                           env={**keep, "AWS_ENDPOINT_URL": self.url,
                                "AWS_ACCESS_KEY_ID": "me",
                                "AWS_SECRET_ACCESS_KEY": "secret"})
        self.assertEqual(p.returncode, want, p.stderr.decode())
        if "--json" in words:
            return json.loads(p.stdout)
        return p.stdout.decode() + p.stderr.decode()

    def files(self, name):
        path, out = os.path.join(self.tmp.name, name), {}
        for file in os.listdir(path):
            if file != "provenance.json":
                with open(os.path.join(path, file), "rb") as f:
                    out[file] = f.read()
        return out

    def test_converts_the_same_from_anywhere(self):
        options = ("--ep", "2", "--redundant", "2")
        self.run_convert("convert", self.source, "want", *options)
        want = self.files("want")
        for i, url in enumerate(("s3://models/V3", self.url + "/models/V3")):
            self.store.faults = ["500", "drop", "short"]
            self.run_convert("convert", url, f"out{i}", *options)
            got = self.files(f"out{i}")
            # the manifest has the versions that the server named
            self.assertEqual(set(got), set(want))
            for name in set(want) - {"manifest.json"}:
                self.assertEqual(got[name], want[name], name)
            said = self.run_convert("verify", f"out{i}", "--source", url)
            self.assertNotIn("MOE-", said)
        self.assertIn("deepseek_v3", self.run_convert("inspect",
                                                      "s3://models/V3"))

    def test_plans_from_headers_alone(self):
        big = os.path.join(self.tmp.name, "big")
        subprocess.run(["python3", os.path.join(
            os.environ["MOEC_ROOT"], "tests", "cli", "make_slice.py"), big,
            "16"], check=True)
        for name in os.listdir(big):
            with open(os.path.join(big, name), "rb") as f:
                self.store.objects["models/big/" + name] = f.read()
        plan = self.run_convert("plan", "s3://models/big", "--ep", "2",
                                "--json")
        self.assertEqual(len(plan["ranks"]), 2)
        sent = 0
        for _, _, headers in self.store.log:
            if "Range" in headers:
                first, last = headers["Range"][6:].split("-")
                sent += int(last) - int(first) + 1
        self.assertLess(sent, 2 << 20)

    def test_uploads_with_the_manifest_last(self):
        self.run_convert("convert", self.source, "out", "--ep", "2")
        self.store.faults = ["503", "drop"]
        self.run_convert("upload", "out", "s3://models/out")
        for name, data in self.files("out").items():
            self.assertEqual(self.store.objects["models/out/" + name], data)
        puts = [p for m, p, _ in self.store.log if m == "PUT"]
        self.assertTrue(puts[-1].endswith("manifest.json"))
        # again: refused; forced: what is there by its digest stays there
        said = self.run_convert("upload", "out", "s3://models/out", want=6)
        self.assertIn("--force", said)
        said = self.run_convert("upload", "out", "s3://models/out", "--force",
                                "--json")
        self.assertGreater(said["n_there_before"], 2)

    def test_reads_conversions_from_anywhere(self):
        self.run_convert("convert", self.source, "out", "--ep", "2",
                         "--redundant", "2")
        self.run_convert("convert", self.source, "want", "--ep", "4")
        self.run_convert("convert", self.source, "other", "--ep", "2")
        for name, data in self.files("out").items():
            self.store.objects["models/out/" + name] = data
        place = ("--layer", "1", "--expert", "3", "--json")
        told = self.run_convert("explain", "out", *place)
        url = "s3://models/out"
        self.store.faults = ["500", "drop", "short"]
        said = self.run_convert("verify", url, "--source", self.source)
        self.assertNotIn("MOE-", said)
        self.run_convert("validate", url, "--source", "s3://models/V3")
        self.assertEqual(self.run_convert("explain", url, *place), told)
        self.run_convert("diff", url, "out")
        self.run_convert("diff", "other", url, want=1)
        self.run_convert("unconvert", url, "back")
        back = self.files("back")
        for name, data in self.files("source").items():
            self.assertEqual(back[name], data, name)
        self.run_convert("convert", url, "again", "--ep", "4")
        again = self.files("again")
        for name, data in self.files("want").items():
            self.assertEqual(again[name], data, name)
        self.run_convert("load", url, "--rank", "1", "--require-signature",
                         "key.pem", want=3)
        # a rank reads its file alone; a plain server has what the manifest
        # names
        for url in (url, self.url + "/models/out"):
            del self.store.log[:]
            load = self.run_convert("load", url, "--rank", "1", "--json")
            self.assertTrue(load["verified"])
            paths = [p for m, p, _ in self.store.log if m == "GET"]
            self.assertTrue(any("experts-rank-00001" in p for p in paths))
            self.assertFalse(any("experts-rank-00000" in p or "common" in p
                                 for p in paths))
        # one wrong byte
        name = next(n for n in sorted(self.store.objects)
                    if "out/experts-rank-00001" in n)
        data = bytearray(self.store.objects[name])
        data[len(data) // 3] ^= 1
        self.store.objects[name] = bytes(data)
        said = self.run_convert("verify", "s3://models/out", want=1)
        self.assertIn("MOE-T3", said)
        self.run_convert("load", "s3://models/out", "--rank", "1", want=5)
        del self.store.objects[name]
        said = self.run_convert("verify", "s3://models/out", want=1)
        self.assertIn("MOE-M05", said)

    @unittest.skipUnless(os.environ.get("MOEC_PROBE"), "no probe")
    def test_connects_and_does_nothing_else(self):
        """With tests/support/sandbox_probe.c in the process, and by a name."""
        self.run_convert("convert", self.source, "out", "--ep", "2")
        said = self.run_convert("inspect", self.source, "-v", "-v")
        if "Landlock 0" in said or "seccomp on" not in said:
            self.skipTest("no sandbox here")
        secret = os.path.join(self.tmp.name, "secret")
        with open(secret, "w"):
            pass
        os.mkdir(os.path.join(self.tmp.name, "at"))
        os.environ.update(LD_PRELOAD=os.environ["MOEC_PROBE"],
                          PROBE_OUTSIDE=secret, PROBE_SECRET=secret)
        self.addCleanup(os.environ.pop, "LD_PRELOAD")
        named = self.url.replace("127.0.0.1", "localhost")
        for words in (("upload", "out", "s3://models/out"),
                      ("convert", named + "/models/V3", "at/out", "--ep", "2"),
                      ("verify", "out", "--source", "s3://models/V3")):
            said = self.run_convert(*words)
            self.assertIn("probe: socket ALLOWED", said)
            for what in ("ptrace", "fork", "read outside", "write outside",
                         "exec"):
                self.assertIn("probe: %s refused" % what, said)

    def test_says_where_a_url_cannot_be(self):
        self.run_convert("verify", "s3://models/x", want=3)
        self.run_convert("check", "s3://models/x", want=2)
        self.run_convert("upload", "nothing", "s3://models/x", want=3)
        self.assertEqual(os.listdir(self.tmp.name), ["source"])


if __name__ == "__main__":
    unittest.main()
