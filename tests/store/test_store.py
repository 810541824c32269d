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


if __name__ == "__main__":
    unittest.main()
