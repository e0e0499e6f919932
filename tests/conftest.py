"""What holds for all tests: how they share the processors, and what is fetched once for them."""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
from pathlib import Path

import pytest
from xdist.remote import Producer

from tests import compiler
from tests.checkpoints import VARIANTS
from tests.processor_time import pytest_runtest_call  # noqa: F401
from tests.tiers import is_repetition
from tests.workers import ByModule, longest_first
from trtstream.samples.smollm2 import fetch_smollm2

# Tests share the processors with those of pytest-xdist's other workers, and their tensors are too small for threads.
# Before torch is imported, which reads it once; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The Triton language decides at its first import whether kernels run in its interpreter, and torch may import it any
# time: `pytest_configure` does. Engines on the CPU go on computing the kernels' definition, which is faster.
os.environ["TRITON_INTERPRET"] = "1"

SHARED_FOLDER = "TRTSTREAM_TESTS_FOLDER"
KERNELS = (
    "tests/plugins/",
    "tests/tensorrt/",
    "tests/benchmarks/test_gpu",
    "tests/runtime/test_compilations",
    "tests/runtime/test_cuda_engine",
)
MEASURING = ("tests/benchmarks/", "tests/evaluation/")


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of what all tests of a run share; pytest-xdist's workers inherit its name.

    The process that has workers runs no test itself, and starts them seconds earlier without torch.
    """
    is_worker = hasattr(config, "workerinput")
    if is_worker or not getattr(config.option, "numprocesses", None):
        import trtstream.plugins.cuda_decode
        import trtstream.plugins.cuda_matvec
        import trtstream.plugins.cuda_prefill
        import trtstream.plugins.cuda_quantized
        import trtstream.plugins.cuda_rotation  # noqa: F401
    del os.environ["TRITON_INTERPRET"]
    if not is_worker:
        folder = tempfile.TemporaryDirectory(prefix="trtstream-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ[SHARED_FOLDER] = folder.name
        compiler.install(Path(folder.name), config.rootpath / ".build" / "compiled")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Set the marks that can be seen from outside; see [tool.pytest.ini_options] in pyproject.toml."""
    others = set(VARIANTS) - {"llama-gqa", "falcon-rw"}
    for item in items:
        if {"smollm2_gguf", "smollm2_engine"} & set(item.fixturenames):
            item.add_marker(pytest.mark.smollm2)
        if "mutated" in item.name or any(variant in item.name for variant in others):
            item.add_marker(pytest.mark.variants)
        if item.nodeid.startswith(KERNELS):
            item.add_marker(pytest.mark.kernels)
        if item.nodeid.startswith(MEASURING):
            item.add_marker(pytest.mark.measuring)
        if is_repetition(item):
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByModule:
    return ByModule(config, log)


@pytest.fixture(autouse=True)
def ctrl_c_works() -> None:
    """A job in the background has SIGINT ignored, and a command run in this process puts its own handler in place."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The trained SmolLM2-135M-Instruct as a .gguf file, fetched once per machine."""
    return fetch_smollm2()


@pytest.fixture(scope="session")
def smollm2_engine(smollm2_gguf: Path) -> Path:
    """SmolLM2's cpu engine in float32, built once for all workers; not to change.

    A session has 4 sink tokens and sees 128, or up to 64 sinks and 124 more.
    On the first 700 tokens of the GPL mit-han-lab/streaming-llm has a perplexity of 21.1092 on the same checkpoint.
    """
    from trtstream.build.checkpoint import open_checkpoint
    from trtstream.build.cpu import build_cpu_engine
    from trtstream.settings import BuildConfig

    engine = Path(os.environ[SHARED_FOLDER], "smollm2")
    with engine.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not engine.exists():
            settings = BuildConfig(max_batch_size=4, max_attention_window=188, max_sink_token_length=64)
            build_cpu_engine(open_checkpoint(smollm2_gguf), settings, engine, lambda done, total: None)
    return engine
