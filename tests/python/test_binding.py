# SPDX-License-Identifier: Apache-2.0
"""The Python binding over the built library: MOEC_LIBRARY and MOEC_ROOT in
the environment, python/ on the path."""
import copy
import ctypes
import errno
import gc
import inspect
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import weakref
from unittest import mock

import numpy as np

import moec
from moec import _abi, kernels, loading, record
from moec._lib import _ERRORS, call
from moec.memory import Tensor, View

ROOT = os.environ["MOEC_ROOT"]


def fixture(name):
    return os.path.join(ROOT, "fixtures", "checkpoints", name)


class Abi(unittest.TestCase):
    def test_a_struct_that_is_too_short_is_refused(self):
        model = moec.Model(moec.Checkpoint(fixture("qwen3_moe")))
        plan = moec.Plan(model)
        placement = moec.Placement([[0, 1]], 2)
        loads = np.ones(2, np.float32)
        out, size = ctypes.c_void_p(), ctypes.c_size_t()
        eplb = _abi.moec_eplb_opts(n_ranks=1)
        for function, options, before, behind in (
                ("moec_kernels_open", _abi.moec_kernels_opts(), (out,), ()),
                ("moec_plan_create", _abi.moec_plan_opts(n_ranks=1),
                 (out, model.pointer), ()),
                ("moec_eplb", eplb, (out, None), (loads.ctypes.data, 1, 2)),
                ("moec_planner", _abi.moec_planner_opts(eplb=eplb), (out,),
                 (loads.ctypes.data, 1, 2)),
                ("moec_replicas_create", _abi.moec_replicas_opts(n_ranks=1),
                 (out, placement.pointer), ()),
                ("moec_placement_write",
                 _abi.moec_placement_write_opts(
                     form=_abi.MOEC_PLACEMENT_PHY2LOG),
                 (placement.pointer,), (out, size)),
                ("moec_plan_diff", _abi.moec_diff_opts(),
                 (out, plan.pointer, plan.pointer, 0), ()),
                ("moec_verify", _abi.moec_verify_opts(), (out, b"/nowhere"),
                 ()),
                ("moec_validate", _abi.moec_validate_opts(),
                 (out, b"/nowhere"), ())):
            before, behind = ([
                ctypes.byref(a) if a is out or a is size else a
                for a in arguments] for arguments in (before, behind))
            options.struct_bytes = 4
            with self.assertRaisesRegex(moec.ArgumentError, "struct_bytes"):
                call(function, *before, ctypes.byref(options), *behind)

    def test_structs_are_those_of_the_headers(self):
        """tests/abi/struct_offsets.c has the compiler's numbers."""
        with open(os.path.join(ROOT, "tests", "abi",
                               "struct_offsets.c")) as f:
            text = f.read()
        sizes = re.findall(r"SIZE\((\w+), (\d+)\)", text)
        fields = re.findall(r"FIELD\((\w+), ([\w.]+), (\d+)\)", text)
        self.assertGreater(len(sizes), 40)
        for name, size in sizes:
            self.assertEqual(ctypes.sizeof(getattr(_abi, name)), int(size),
                             name)
        for name, field, offset in fields:
            if "." in field:
                continue
            self.assertEqual(getattr(getattr(_abi, name), field).offset,
                             int(offset), f"{name}.{field}")

    def test_structs_begin_as_their_macros_say(self):
        opts = _abi.moec_plan_opts()
        self.assertEqual(opts.struct_bytes, ctypes.sizeof(opts))
        self.assertEqual(opts.n_ranks, 1)
        with self.assertRaises(TypeError):
            _abi.moec_plan_opts(n_rank=2)


    def test_every_status_is_an_exception_of_its_own(self):
        known = {v for n, v in vars(_abi).items() if n.startswith("MOEC_E_")}
        self.assertEqual(known - set(_ERRORS), {_abi.MOEC_E_INTERNAL})
        self.assertEqual(len(set(_ERRORS.values())), len(_ERRORS))

    def test_what_is_public_says_what_it_does_and_takes(self):
        for module in (moec.checkpoint, moec.memory, kernels, loading, record):
            for name, c in inspect.getmembers(module):
                if name.startswith("_") or \
                        getattr(c, "__module__", None) != module.__name__:
                    continue
                inside = [(name, c)]
                if inspect.isclass(c):
                    inside += [(f"{name}.{n}", m) for n, m in vars(c).items()
                               if not n.startswith("_")]
                for n, m in inside:
                    m = m.fget if isinstance(m, property) else \
                        getattr(m, "__func__", m)
                    if inspect.isfunction(m) or inspect.isclass(m):
                        self.assertTrue(m.__doc__, n)
                    if inspect.isfunction(m):
                        hints = set(m.__annotations__)
                        self.assertEqual(
                            {"return", *inspect.signature(m).parameters} -
                            hints - {"self", "cls"}, set(), n)


class Checkpoints(unittest.TestCase):
    def test_reads_what_safetensors_reads(self):
        c = moec.Checkpoint(fixture("deepseek_v3"))
        for t in list(c)[::17]:
            with open(os.path.join(c.directory, t.file), "rb") as f:
                head = struct.unpack("<Q", f.read(8))[0]
                entry = json.loads(f.read(head))[t.name]
                begin, end = entry["data_offsets"]
                f.seek(8 + head + begin)
                want = f.read(end - begin)
            self.assertEqual(entry["shape"], list(t.shape))
            self.assertEqual(entry["dtype"], t.dtype)
            self.assertEqual(bytes(c.read(t.name)), want)
            room = np.zeros(t.nbytes, np.uint8)
            c.read(t.name, into=room)
            self.assertEqual(room.tobytes(), want)
        with self.assertRaises(ValueError):
            c.read(t.name, into=bytearray(t.nbytes + 1))
        with self.assertRaises(ValueError):
            c.read(t.name, into=bytes(t.nbytes))
        with self.assertRaises(KeyError):
            c["nothing of that name"]

    def test_errors_are_exceptions_with_the_librarys_text(self):
        with self.assertRaises(moec.FormatError) as e:
            moec.Checkpoint(os.path.join(ROOT, "no such place"))
        self.assertEqual(e.exception.rule, "MOE-I01")
        self.assertIn("no such place", str(e.exception))
        c = moec.Checkpoint(fixture("qwen3_moe"))
        c.close()
        with self.assertRaises(moec.ArgumentError):
            len(c)

    def test_plans_say_what_stands_where(self):
        model = moec.Model(moec.Checkpoint(fixture("deepseek_v3")))
        e = model.facts["n_experts"]
        plan = moec.Plan(model, n_ranks=2, n_redundant=2)
        for layer in range(plan.n_layers):
            units = plan.units(layer, 0) + plan.units(layer, 1)
            half = len(units) // 2
            self.assertEqual(units[half - 1], e)  # shared, last on each rank
            self.assertEqual(units[-1], e)
            routed = units[:half - 1] + units[half:-1]
            self.assertEqual(routed, [i % e for i in range(e + 2)])
            names = [t["name"] for t in plan.slot_tensors(layer)]
            self.assertTrue(any("w13" in n for n in names))
        with self.assertRaisesRegex(moec.FileError, "gone: No such file"):
            moec.Placement.read(model, os.path.join(ROOT, "gone"))
        with self.assertRaises(moec.MappingError) as bad:
            moec.Plan(model, n_ranks=5)
        self.assertEqual(bad.exception.rule, "MOE-P06")
        with self.assertRaises(IndexError):
            plan.units(0, 2)

    def test_plans_keep_what_they_borrow(self):
        plan = moec.Plan(moec.Model(moec.Checkpoint(fixture("mixtral"))))
        gc.collect()
        self.assertTrue(plan.slot_tensors(0)[0]["name"])

    def test_placements_go_in_and_out(self):
        rows = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 2]]
        p = moec.Placement(rows, 4)
        self.assertEqual(p.rows, rows)
        self.assertFalse(p.is_trivial)
        with self.assertRaises(moec.MappingError):
            moec.Placement([[0, 1, 2, 2]], 4)  # 3 is missing
        loads = np.arange(8, dtype=np.float32).reshape(1, 8)
        p = moec.Placement.eplb(loads, n_ranks=2, n_redundant=2)
        self.assertEqual(sorted(set(p.rows[0])), list(range(8)))
        self.assertEqual(p.rows[0].count(7), 2)  # the hottest one


class Loading(unittest.TestCase):
    """Against stacks made by numpy of what the checkpoint's tensors are."""

    def setUp(self):
        self.ckpt = moec.Checkpoint(fixture("deepseek_v3"))
        self.model = moec.Model(self.ckpt)

    def expert(self, layer, unit):
        e = self.model.facts["n_experts"]
        where = self.model.layer(layer)["experts_prefix"].removesuffix(
            "experts") + (f"experts.{unit}." if unit < e else
                          "shared_experts.")
        part = {p: np.frombuffer(self.ckpt.read(where + p + "_proj.weight"),
                                 np.uint16).reshape(
                    self.ckpt[where + p + "_proj.weight"].shape)
                for p in ("gate", "up", "down")}
        return np.concatenate([part["gate"], part["up"]]), part["down"]

    def check(self, plan, rank, got, rows=None):
        for layer in range(plan.n_layers):
            w13, w2 = plan.slot_tensors(layer)
            for row, unit in enumerate(plan.units(layer, rank)[:rows]):
                want = self.expert(layer, unit)
                for name, w in ((w13["name"], want[0]), (w2["name"], want[1])):
                    np.testing.assert_array_equal(got[name][row], w)

    def test_loads_each_rank_as_it_is_placed(self):
        e = self.model.facts["n_experts"]
        rows = [list(np.random.default_rng(i).permutation(e)) + [i, i + 5]
                for i in range(self.model.n_layers)]
        plan = moec.Plan(self.model, n_ranks=2,
                         placement=moec.Placement(rows, e))
        for rank in (0, 1):
            seen = []
            got = loading.load(plan, rank, common=True, ready=seen.append,
                               progress=lambda done, total: False)
            self.check(plan, rank, {k: t.numpy(raw=True)
                                    for k, t in got.items()})
            self.assertEqual(seen, [None, *range(plan.n_layers)])
            np.testing.assert_array_equal(
                got["model.norm.weight"].numpy(raw=True),
                np.frombuffer(self.ckpt.read("model.norm.weight"), np.uint16))

    def test_fills_the_callers_tensors(self):
        plan = moec.Plan(self.model, n_ranks=2)
        routed = len(plan.units(0, 1)) - 1  # without the shared row
        with loading.Job(plan, 1) as job:
            mine = {}
            for layer in range(plan.n_layers):
                for t in range(2):
                    want = job.slot_tensor(layer, t)
                    room = np.full((2 * routed, *want["shape"][1:]), 7,
                                   np.uint16)
                    mine[want["name"]] = room[::2]  # gaps between slots
                    job.place_slots(layer, t, mine[want["name"]])
            job.start()
            job.wait()
            stats = job.stats()
        self.check(plan, 1, mine, routed)
        for room in mine.values():
            self.assertTrue((room.base[1::2] == 7).all())
        self.assertEqual(stats["n_layers_ready"], plan.n_layers)
        with loading.Job(plan, 1) as job:
            w13 = job.slot_tensor(0, 0)
            with self.assertRaises(moec.ArgumentError):  # too few rows
                job.place_slots(0, 0, np.zeros((1, *w13["shape"][1:]),
                                               np.uint16))
            with self.assertRaises(ValueError):  # another shape
                job.place_slots(0, 0, np.zeros((9, 3, 3), np.uint16))
            with self.assertRaises(KeyError):
                job.place_tensor("no such tensor")

    def test_what_the_caller_placed_is_not_the_arenas(self):
        plan = moec.Plan(self.model, n_ranks=2)
        with loading.Job(plan, 0) as job:
            shape = job.slot_tensor(0, 0)["shape"]
            routed = np.zeros((shape[0] - 1, *shape[1:]), np.uint16)
            job.place_slots(0, 0, routed)  # fewer rows than a slot tensor has
            norm = np.zeros(self.ckpt["model.norm.weight"].nbytes, np.uint8)
            job.place_tensor("model.norm.weight", norm)
            job.start()
            job.wait()
            self.assertIsNone(job.slots(0, 0))
            self.assertIsNone(job.tensor("model.norm.weight"))
            self.assertIsNotNone(job.slots(0, 1))

    def test_refuses_slots_that_overlap_or_are_of_another_width(self):
        with loading.Job(moec.Plan(self.model), 0) as job:
            shape = job.slot_tensor(0, 0)["shape"]
            one = np.zeros(shape[1:], np.uint16)
            for bad in (np.lib.stride_tricks.as_strided(
                            one, shape, (0, *one.strides), writeable=True),
                        np.zeros(shape, np.uint16)[::-1],
                        np.zeros(shape, np.complex128)):
                with self.assertRaises(ValueError):
                    job.place_slots(0, 0, bad)

    def test_no_layers_are_no_layers(self):
        plan = moec.Plan(self.model)
        with loading.Job(plan, 0, layers=[]) as job:
            job.start()
            job.wait()
            self.assertEqual(job.stats()["bytes_needed"], 0)

    def test_what_ready_returns_does_not_matter(self):
        plan = moec.Plan(self.model)
        got = loading.load(plan, 0, ready=lambda layer: True)
        self.assertEqual(len(got), 2 * plan.n_layers)

    def test_common_is_what_stands_in_no_slot(self):
        mtp = "model.layers.3.eh_proj.weight"
        shared = "model.layers.1.mlp.shared_experts.up_proj.weight"
        for options, has_mtp, has_shared in (
                ({}, True, False), ({"mtp": False}, False, False),
                ({"shared": "off"}, True, True)):
            got = loading.load(moec.Plan(self.model, **options), 0,
                               common=True)
            self.assertEqual(mtp in got, has_mtp)
            self.assertEqual(shared in got, has_shared)

    def test_an_exception_in_a_callback_ends_the_job(self):
        def ready(layer):
            raise RuntimeError("mine")

        plan = moec.Plan(self.model, n_ranks=2)
        with self.assertRaisesRegex(RuntimeError, "mine"):
            loading.load(plan, 0, ready=ready)


    def test_ctrl_c_ends_a_load(self):
        seen, left = [], []

        def ready(layer):
            seen.append(layer)
            if len(seen) == 1:
                time.sleep(0.3)  # it waits by now
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
            left.append(layer)

        with loading.Job(moec.Plan(self.model), 0, ready=ready) as job:
            job.start()
            with self.assertRaises(KeyboardInterrupt):
                job.wait()
            self.assertEqual(seen, left)  # no thread is in the job any more
        self.assertLess(len(seen), self.model.n_layers)

    def test_no_memory_says_for_how_many_bytes(self):
        def none(*arguments):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        with loading.Job(moec.Plan(self.model), 0) as job:
            with mock.patch.object(loading.mmap, "mmap", none), \
                    self.assertRaisesRegex(moec.OutOfMemoryError,
                                           r"[0-9]+ bytes of tensors"):
                job.start()

    def test_needs_no_numpy(self):
        program = (
            "import sys; sys.modules['numpy'] = None\n"
            "import moec, moec.loading as loading\n"
            "plan = moec.Plan(moec.Model(sys.argv[1]))\n"
            "got = loading.load(plan, 0, common=True)\n"
            "sys.stdout.buffer.write(got['model.norm.weight'].buffer)\n")
        got = subprocess.run(
            [sys.executable, "-c", program, self.ckpt.directory], check=True,
            stdout=subprocess.PIPE).stdout
        self.assertEqual(got, bytes(self.ckpt.read("model.norm.weight")))


class Lifetime(unittest.TestCase):
    def setUp(self):
        self.plan = moec.Plan(moec.Model(fixture("deepseek_v3")))

    def test_what_is_dropped_goes_at_once(self):
        gc.disable()
        try:
            job = loading.Job(self.plan, 0, ready=lambda layer: None,
                              progress=lambda done, total: False)
            job.start()
            job.wait()
            kept = job.slots(0, 0)
            want = bytes(kept.buffer)
            room = weakref.ref(job._arenas[0])
            gone = weakref.ref(job)
            del job
            self.assertIsNone(gone())
            self.assertEqual(bytes(kept.buffer), want)  # it outlives the job
            view = kept.numpy(raw=True)
            del kept
            self.assertEqual(view.tobytes(), want)
            self.assertIsNotNone(room())
            del view
            self.assertIsNone(room())
        finally:
            gc.enable()

    def test_a_load_that_raised_leaves_nothing_open(self):
        def ready(layer):
            raise RuntimeError("mine")

        gc.disable()
        try:
            before = os.listdir("/proc/self/fd")
            plan = moec.Plan(moec.Model(fixture("qwen3_moe")))
            try:  # assertRaises would clear the frames
                loading.load(plan, 0, ready=ready)
                self.fail("it loaded")
            except RuntimeError:
                pass
            del plan
            self.assertEqual(os.listdir("/proc/self/fd"), before)
        finally:
            gc.enable()

    def test_nothing_is_copied_with_the_address_in_it(self):
        tensor = next(iter(loading.load(self.plan, 0).values()))
        for thing in (self.plan, tensor, loading.Job(self.plan, 0)):
            for f in (copy.copy, copy.deepcopy, pickle.dumps):
                with self.assertRaisesRegex(TypeError, "cannot be copied"):
                    f(thing)

    def test_a_fork_has_no_threads(self):
        shared = kernels.Kernels(n_threads=2)
        router = kernels.Router(8, 2, kernels=shared)
        x = np.zeros((4, 8), np.float32)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(20)
                try:
                    router.route(x)
                except moec.ArgumentError as e:
                    code = 0 if "fork" in str(e) else 2
                shared.close()
                loading.load(self.plan, 0)
            finally:
                os._exit(code)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        router.route(x)


class Checks(unittest.TestCase):
    """verify and validate, of a conversion that the program makes."""

    def test_a_damaged_conversion_is_one_still(self):
        with tempfile.TemporaryDirectory() as tmp:
            out = os.path.join(tmp, "out")
            subprocess.run([os.environ["MOEC_CONVERT"], "convert",
                            fixture("qwen3_moe"), out, "--ep", "1",
                            "--quiet"], check=True)
            manifest = os.path.join(out, "manifest.json")
            for damage in (lambda: open(manifest, "w").close(),
                           lambda: os.remove(manifest)):
                self.assertTrue(moec.is_converted(out))
                damage()
                self.assertTrue(moec.is_converted(out))
                with self.assertRaisesRegex(moec.FormatError, "MOE-M01"):
                    moec.Conversion(out)
        self.assertFalse(moec.is_converted(fixture("qwen3_moe")))

    def test_an_exception_in_progress_ends_it(self):
        def progress(done, total):
            calls.append(done)
            raise KeyError("mine")

        source = moec.Checkpoint(fixture("qwen3_moe"))
        with tempfile.TemporaryDirectory() as tmp:
            out = os.path.join(tmp, "out")
            subprocess.run([os.environ["MOEC_CONVERT"], "convert",
                            source.directory, out, "--ep", "2", "--quiet"],
                           check=True)
            for run in (lambda p: moec.verify(out, progress=p),
                        lambda p: moec.validate(out, source, n_tokens=4,
                                                progress=p)):
                calls = []
                with self.assertRaisesRegex(KeyError, "mine"):
                    run(progress)
                self.assertEqual(len(calls), 1)
                with self.assertRaises(moec.CancelledError):
                    run(lambda done, total: True)
                self.assertEqual([f for f in run(None)
                                  if f.severity == "error"], [])


class Kernels(unittest.TestCase):
    def test_chooses_as_numpy_does(self):
        rng = np.random.default_rng(1)
        x = rng.standard_normal((33, 64)).astype(np.float32)
        for isa in ("scalar", "auto"):
            r = kernels.Router(64, 8, norm="sum",
                               kernels=kernels.Kernels(isa))
            got = r.route(x)
            want = np.argsort(-x, axis=1, kind="stable")[:, :8]
            np.testing.assert_array_equal(got.ids, want)
            p = np.exp(x - x.max(1, keepdims=True))
            w = np.take_along_axis(p, want, 1)
            np.testing.assert_allclose(got.weights,
                                       w / w.sum(1, keepdims=True), rtol=2e-6)

    def test_takes_rows_with_gaps_and_bfloat16(self):
        rng = np.random.default_rng(2)
        wide = rng.standard_normal((5, 32)).astype(np.float32)
        r = kernels.Router(16, 2)
        np.testing.assert_array_equal(r.route(wide[:, :16]).ids,
                                      r.route(wide[:, :16].copy()).ids)
        raw = (wide[:, :16].copy().view(np.uint32) >> 16).astype(np.uint16)
        cut = (raw.astype(np.uint32) << 16).view(np.float32)
        bf16 = Tensor(raw, raw.ctypes.data, raw.shape, "BF16")
        np.testing.assert_array_equal(r.route(bf16).ids, r.route(cut).ids)
        with self.assertRaises(ValueError):
            r.route(wide)
        with self.assertRaises(ValueError):
            r.route(wide[:, :16], bias=np.zeros(15, np.float32))

    def test_refuses_logits_that_it_cannot_read(self):
        class OnDevice:
            shape, dtype = (1, 8), "torch.float32"
            device = type("device", (), {"type": "cuda"})
            data_ptr = element_size = stride = None

        r, row = kernels.Router(8, 2), np.zeros(8, np.float32)
        for bad in (np.broadcast_to(row, (4, 8)),
                    np.zeros((4, 8), np.float32)[::-1], OnDevice()):
            with self.assertRaises(ValueError):
                r.route(bad)

    def test_cuts_no_number(self):
        model = moec.Model(moec.Checkpoint(fixture("qwen3_moe")))
        plan = moec.Plan(model)
        for bad in (lambda: moec.Placement([[2 ** 32, 1]], 2),
                    lambda: moec.Placement([[0.5, 1.5]], 2),
                    lambda: moec.Placement([[False, True]], 2),
                    lambda: moec.Plan(model, n_ranks=2 ** 32 + 1),
                    lambda: loading.Job(plan, 2 ** 32),
                    lambda: loading.Job(plan, 0, layers=[2 ** 32]),
                    lambda: kernels.Router(8, 2, expert_choice="on",
                                           capacity_factor=5000),
                    lambda: kernels.load_stats(np.array([2 ** 32, 1])),
                    lambda: kernels.load_stats([-1, 0.5])):
            with self.assertRaises((ValueError, TypeError,
                                    ctypes.ArgumentError)):
                bad()

    def test_threads_take_turns_at_a_back_end_with_threads(self):
        shared = kernels.Kernels(n_threads=3)
        r = kernels.Router(64, 8, kernels=shared)
        x = np.random.default_rng(5).standard_normal((512, 64))
        x = x.astype(np.float32)
        want = r.route(x)
        same = []

        def work():
            same.extend((r.route(x).ids == want.ids).all() for _ in range(30))

        threads = [threading.Thread(target=work, daemon=True)
                   for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        self.assertEqual(same, 90 * [True])

    def test_expert_choice_tells_what_it_did(self):
        rng = np.random.default_rng(3)
        r = kernels.Router(8, 2, expert_choice="on", fill="balanced",
                           capacity_factor=1.0)
        got = r.route(rng.standard_normal((64, 8)).astype(np.float32))
        self.assertEqual(got.expert_choice["on"], 1)
        self.assertLessEqual(np.bincount(got.ids.ravel()).max(), 16)
        self.assertEqual(json.loads(r.describe())["n_experts"], 8)

    def test_waterfill_levels_the_load(self):
        ids = np.zeros((256, 2), np.int32)  # all of it on rank 0
        ids[:, 1] = 1
        ranks, load, target = kernels.waterfill(ids, 8, 4, by_rank=True)
        self.assertEqual(load.sum(), 512)
        self.assertLess((ranks == 0).mean(), 0.25)
        self.assertGreater(target, 0)


class Recording(unittest.TestCase):
    def test_keeps_what_threads_append(self):
        model = moec.Model(moec.Checkpoint(fixture("qwen3_moe")))
        n, k = model.n_layers, model.facts["top_k"]
        rng = np.random.default_rng(4)
        rows = np.stack([np.stack([
            rng.permutation(model.facts["n_experts"])[:k]
            for _ in range(64)]) for _ in range(n)]).astype(np.int32)
        r = record.Recorder(model)
        a, b = r.request("a"), r.request("b")

        def run(layer):
            for first in range(0, 64, 16):
                # two requests in turn, and a column that is shared
                keys = [(a, b)[t % 2] for t in range(first, first + 16)]
                wide = np.full((16, k + 1), 99, np.int32)
                wide[:, :k] = rows[layer, first:first + 16]
                r.append(layer, keys, np.arange(first, first + 16) // 2, wide)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        got = r.stop()
        self.assertEqual(got.shape, (64, n, k))
        self.assertEqual([q.id for q in got.requests], ["a", "b"])
        for layer in range(n):
            np.testing.assert_array_equal(
                got.ids(layer), np.concatenate([rows[layer, ::2],
                                                rows[layer, 1::2]]))
            np.testing.assert_array_equal(
                got.counts()[layer],
                np.bincount(rows[layer].ravel(),
                            minlength=model.facts["n_experts"]))
        with tempfile.TemporaryDirectory() as tmp:
            path = os.path.join(tmp, "routes.safetensors")
            got.save(path)
            again = record.Routes(path)
            np.testing.assert_array_equal(again.ids(0), got.ids(0))
            with self.assertRaises(moec.ArgumentError):
                got.save(path)
        self.assertEqual(moec.Placement.eplb(got.counts(), 2, 2).n_physical,
                         model.facts["n_experts"] + 2)

    def test_says_which_row_is_missing(self):
        r = record.Recorder(n_experts=8, top_k=2, layers=(0, 3), n_decoder=4)
        q = r.request("x")
        r.append(0, q, [0, 1], np.zeros((2, 2), np.int32))
        with self.assertRaises(moec.IntegrityError) as e:
            r.take(q)
        self.assertEqual(e.exception.rule, "MOE-R04")
        with self.assertRaises(ValueError):
            r.append(0, q, [0], np.zeros((1, 1), np.int32))


class Memory(unittest.TestCase):
    def test_dlpack_is_the_same_memory(self):
        a = np.arange(12, dtype=np.float32).reshape(3, 4)
        t = Tensor(a, a.ctypes.data, a.shape, "F32")
        b = np.from_dlpack(t)
        a[1, 2] = 99
        self.assertEqual(b[1, 2], 99)
        before = sys.getrefcount(a)
        del t, b
        gc.collect()
        self.assertLess(sys.getrefcount(a), before)
        unused = Tensor(a, a.ctypes.data, a.shape, "F32").__dlpack__()
        del unused  # a capsule that nobody took
        gc.collect()
        self.assertEqual(sys.getrefcount(a), before - 1)

    def test_views_know_strides_and_refuse_what_is_read_only(self):
        a = np.zeros((4, 6), np.float16)[:, :3]
        v = View(a)
        self.assertEqual(v.strides, (12, 2))
        self.assertFalse(v.is_dense)
        a.flags.writeable = False
        with self.assertRaises(ValueError):
            View(a, writable=True)
        self.assertEqual(View(b"abc").shape, (3,))


if __name__ == "__main__":
    unittest.main()
