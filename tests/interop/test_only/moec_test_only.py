# SPDX-License-Identifier: MIT
"""Patches of vLLM that let its CPU build run expert parallelism and EPLB, for
tests alone: never part of what users install."""
import os


def register():
    if os.environ.get("MOEC_TEST_CPU_EPLB"):
        from moec_test_cpu_eplb import allow
        allow()
    if os.environ.get("MOEC_TEST_CPU_EP"):
        from moec_test_cpu_ep import allow
        allow()
    if os.environ.get("MOEC_TEST_TIMES"):
        _time_loaders(os.environ["MOEC_TEST_TIMES"])
    if os.environ.get("MOEC_TEST_NO_PUBLISH"):  # the negative control
        import moec.vllm
        moec.vllm.publish = lambda rows: None


def _time_loaders(path):
    """Append to a file how long load_weights takes, whoever's it is."""
    import time
    from vllm.model_executor import model_loader
    stock = model_loader.get_model_loader

    def get_model_loader(*args, **kwargs):
        loader = stock(*args, **kwargs)
        inner = loader.load_weights

        def load_weights(*a, **kw):
            began = time.perf_counter()
            inner(*a, **kw)
            with open(path, "a") as f:
                f.write(f"{type(loader).__name__} "
                        f"{time.perf_counter() - began}\n")

        loader.load_weights = load_weights
        return loader

    model_loader.get_model_loader = get_model_loader
