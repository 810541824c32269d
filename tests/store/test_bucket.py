# SPDX-License-Identifier: Apache-2.0
"""moe-convert convert and finalize into an object store, against a server with
faults. Environment: MOEC_CONVERT and MOEC_ROOT."""
import os
import signal
import subprocess
import tempfile
import unittest

from server import Store, serve

OPTIONS = ("--ep", "2", "--redundant", "2")
PARTS = (*OPTIONS, "--part-bytes", "64KiB")  # 8 of a rank, 3 of the common
URL, KEY = "s3://models/out", "models/out/"


class BucketTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        """What a local conversion writes, once."""
        cls.tmp = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.tmp.cleanup)
        fixture = os.path.join(os.environ["MOEC_ROOT"], "fixtures",
                               "checkpoints", "deepseek_v3")
        cls.source = os.path.join(cls.tmp.name, "source")
        os.mkdir(cls.source)
        for name in os.listdir(fixture):
            if name.startswith(("model", "config", "generation")):
                with open(os.path.join(fixture, name), "rb") as f:
                    data = f.read()
                with open(os.path.join(cls.source, name), "wb") as f:
                    f.write(data)
        subprocess.run([os.environ["MOEC_CONVERT"], "convert", "source",
                        "want", *OPTIONS, "--quiet"], cwd=cls.tmp.name,
                       check=True)
        cls.want = {}
        for name in os.listdir(os.path.join(cls.tmp.name, "want")):
            with open(os.path.join(cls.tmp.name, "want", name), "rb") as f:
                cls.want[name] = f.read()

    def setUp(self):
        self.store = Store()
        self.server, self.url = serve(self.store)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def start(self, *words):
        keep = {k: v for k, v in os.environ.items()
                if "proxy" not in k.lower()}
        return subprocess.Popen(
            [os.environ["MOEC_CONVERT"], *words], stderr=subprocess.PIPE,
            stdout=subprocess.PIPE, cwd=self.tmp.name,
            env={**keep, "AWS_ENDPOINT_URL": self.url,
                 "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"})

    def run_convert(self, *words, want=0):
        p = self.start(*words)
        out, err = p.communicate(timeout=200)
        self.assertEqual(p.returncode, want, err.decode())
        return out.decode() + err.decode()

    def convert(self, *words, want=0):
        return self.run_convert("convert", "source", URL, *(words or PARTS),
                                want=want)

    def there(self):
        return {k[len(KEY):]: v for k, v in self.store.objects.items()
                if k.startswith(KEY)}

    def assert_complete(self):
        got = self.there()
        self.assertEqual(set(got), set(self.want))
        for name in set(got) - {"provenance.json"}:
            self.assertEqual(got[name], self.want[name], name)
        self.assertEqual(self.store.uploads, {})

    def test_writes_what_a_directory_gets(self):
        for words in (OPTIONS, (*OPTIONS, "--part-bytes", "1MiB"), PARTS):
            self.store.objects.clear()
            self.store.faults = ["500", "drop", "503", "bent", "429"]
            self.convert(*words)
            self.assertEqual(self.store.faults, [])
            self.assert_complete()
        last = [(p, h) for m, p, h in self.store.log if m == "PUT"][-1]
        self.assertTrue(last[0].endswith("/manifest.json"))
        self.assertEqual(last[1]["If-None-Match"], "*")
        self.assertNotIn("MOE-", self.run_convert("verify", URL, "--source",
                                                  "source"))

    def test_leaves_what_is_there(self):
        self.convert()
        before = dict(self.store.objects)
        self.assertIn("--force", self.convert(want=2))
        self.assertIn("--force", self.convert("--ep", "4", want=2))
        self.assertEqual(self.store.objects, before)
        # replaced whole: what the new one has not goes
        self.convert("--ep", "4", "--force")
        self.assertIn("experts-rank-00003-of-00004-part-00001.safetensors",
                      self.there())
        self.convert(*PARTS, "--force")
        self.assert_complete()
        # what nobody of us wrote
        self.store.objects = {KEY + "notes.txt": b"mine"}
        self.assertIn("notes.txt", self.convert(want=2))
        self.assertIn("notes.txt", self.convert(*PARTS, "--force", want=2))
        self.convert(*PARTS, "--dry-run")
        self.assertEqual(self.store.objects, {KEY + "notes.txt": b"mine"})

    def kill_at(self, part, *words):
        """Start; killed as its part'th part arrives."""
        p = self.start("convert", "source", URL, *PARTS, "--threads", "1",
                       *words)

        def kill():
            os.kill(p.pid, signal.SIGKILL)
        self.store.on_kill = kill
        self.store.faults = ["part"] * (part - 1) + ["kill"]
        p.communicate(timeout=200)
        self.assertEqual(p.returncode, -signal.SIGKILL)
        self.store.faults = []

    def test_goes_on_after_kill_9(self):
        for part in (2, 7, 12):
            self.store.objects.clear()
            self.store.uploads.clear()
            self.store.sent = 0
            self.kill_at(part)
            self.assertNotIn("manifest.json", self.there())
            self.assertIn(".moec-job", self.there())
            before = self.store.sent
            said = self.convert()
            self.assertIn("before", said)
            self.assert_complete()
            # no part twice but, perhaps, the one that was under way
            self.assertLessEqual(self.store.sent, self.all_parts() + 1)
            self.assertGreaterEqual(before, part)

    def all_parts(self):
        return sum(-(-len(d) // 65536) for n, d in self.want.items()
                   if n.endswith(".safetensors") and len(d) > 65536)

    def test_sends_again_what_is_not_right(self):
        self.kill_at(5)
        upload = next(iter(self.store.uploads.values()))
        etag, data = upload[2]
        upload[2] = (etag, b"x" + data[1:])
        del upload[3]
        self.convert()
        self.assert_complete()

    def test_other_options_are_refused_meanwhile(self):
        self.kill_at(3)
        before = dict(self.store.objects)
        said = self.convert("--ep", "4", want=2)
        self.assertIn("another conversion ('option --ep 2' then, "
                      "'option --ep 4' now)", said)
        self.assertEqual(self.store.objects, before)
        self.convert()
        self.assert_complete()

    def test_gives_up_uploads_that_cannot_be_gone_on_with(self):
        name = "experts-rank-00000-of-00002-part-00001.safetensors"
        for upload in ("a", "b"):
            self.store.uploads[upload] = {}
            self.store.upload_keys[upload] = KEY + name
        self.store.uploads["c"] = {}
        self.store.upload_keys["c"] = KEY + name + ".mine"
        self.convert()
        self.assertEqual(self.store.uploads, {"c": {}})

    def test_a_part_of_other_bytes_is_noticed(self):
        self.store.faults = ["wrong-sum"]
        said = self.convert(*PARTS, "--threads", "1", want=4)
        self.assertIn("took other bytes than were sent", said)
        self.assertIn("run the same command again", said)
        self.convert()
        self.assert_complete()

    def test_says_who_refuses_and_what_to_do(self):
        self.store.denied = "part"
        said = self.convert(want=4)
        for word in ("PUT", "experts-rank-", "part ", "status 403",
                     "AccessDenied", "check key, region and rights"):
            self.assertIn(word, said)
        self.store.denied = None
        self.store.gone = True  # somebody gives the uploads up meanwhile
        said = self.convert(want=4)
        self.assertIn("NoSuchUpload", said)
        self.store.gone = False
        self.convert()
        self.assert_complete()

    def test_a_conversion_that_was_first_stays(self):
        self.store.first = (KEY + "manifest.json", b"{}")
        said = self.convert(want=6)
        self.assertIn("another conversion was complete first", said)
        self.assertEqual(self.there()["manifest.json"], b"{}")
        # the same one, whose answer was lost
        self.store.objects.clear()
        self.store.first = (KEY + "manifest.json", self.want["manifest.json"])
        self.convert()
        self.assert_complete()

    def test_a_lost_answer_at_the_end_of_an_upload(self):
        self.store.faults = ["lost"]
        self.convert()
        self.assert_complete()

    def test_a_source_that_changes_leaves_nothing(self):
        for name in os.listdir(self.source):
            with open(os.path.join(self.source, name), "rb") as f:
                self.store.objects["models/src/" + name] = f.read()
        key = "models/src/model.safetensors"
        key = key if key in self.store.objects else next(
            k for k in self.store.objects if k.startswith("models/src/model-"))
        self.store.change = key
        said = self.run_convert("convert", "s3://models/src", URL, *PARTS,
                                "--threads", "1", want=3)
        self.assertIn("MOE-I13", said)
        self.assertEqual((self.there(), self.store.uploads), ({}, {}))

    def test_several_processes(self):
        both = [self.start("convert", "source", URL, *PARTS, "--ranks", k)
                for k in ("0", "1")]
        for p in both:
            err = p.communicate(timeout=200)[1]
            self.assertEqual(p.returncode, 0, err.decode())
        self.run_convert("convert", "source", URL, *PARTS, "--ranks", "1")
        said = self.run_convert("finalize", URL)
        self.assertIn("complete, 2 ranks", said)
        self.assert_complete()
        self.assertIn("complete already", self.run_convert("finalize", URL))

    def test_missing_ranks_are_named(self):
        self.run_convert("finalize", URL, want=3)
        self.run_convert("convert", "source", URL, *PARTS, "--ranks", "0")
        said = self.run_convert("finalize", URL, want=3)
        self.assertIn("rank 1 of 2 is not converted", said)
        # one process may do the rest
        self.convert(*OPTIONS)
        self.assertEqual(set(self.there()), set(self.want))

    def test_a_data_file_that_was_changed_is_named(self):
        for k in ("0", "1"):
            self.run_convert("convert", "source", URL, *PARTS, "--ranks", k)
        name = next(k for k in self.store.objects if "rank-00001" in k and
                    "leaves" not in k)
        data = bytearray(self.store.objects[name])
        data[100] ^= 1
        self.store.objects[name] = bytes(data)
        said = self.run_convert("finalize", URL, want=5)
        self.assertIn("MOE-M06", said)


if __name__ == "__main__":
    unittest.main()
