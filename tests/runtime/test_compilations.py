"""The cuda target compiles all of its kernels when an engine is loaded, and none while it serves.

Triton compiles a kernel once for each specialization of its arguments, which depends on more than their types: an
integer may be 1 or a multiple of 16, an address a multiple of 16. Without a GPU the launches are intercepted, and
Triton's own code computes their specializations; with one, compilations are counted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines import build_variant
from trtstream.plugins.cuda_device import why_no_cuda

# In processes of their own: in this one the Triton language uses its interpreter.
SPECIALIZATIONS = """
import sys
from dataclasses import replace
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import compute_cache_key, create_function_from_signature
from benchmarks.gpu.launches import Engine, intercepted, launch_all, meta_backend
from benchmarks.models import TINY_FALCON_RW, TINY_LLAMA
from trtstream.plugins.decode_plan import Step
from trtstream.plugins.window import Window
from trtstream.runtime import cuda
from trtstream.settings import BuildConfig

TARGET = make_backend(GPUTarget("cuda", 90, 32))
MULTIPROCESSORS = 132
exec(sys.argv[1])


class Specializations(set):
    def add_launch(self, kernel, *arguments, grid, warmup, **constants):
        bind = create_function_from_signature(kernel.signature, kernel.params, TARGET)
        _, specialization, options = bind(*arguments, **constants)
        self.add(kernel.__name__ + compute_cache_key({}, specialization, options))


def launch_into(specializations):
    return lambda kernel, *arguments, **others: specializations.add_launch(kernel, *arguments, **others)


LENGTHS = 1, 17, 48, 65, 256, 300

# One layer has the launches of all.
for model in (replace(model, num_hidden_layers=1) for model in (TINY_LLAMA, TINY_FALCON_RW)):
    for quantization, kv_dtype in ((None, None), ("int8", "int8"), ("int4", "fp8")):
        build = BuildConfig(
            max_attention_window=64, max_num_tokens=300, max_batch_size=5, max_sink_token_length=16, dtype="float16",
            kv_dtype=kv_dtype,
        )
        engine = Engine(model, build, quantization)
        loaded, served = Specializations(), Specializations()
        launch_all(engine, launch_into(loaded), MULTIPROCESSORS)
        backend = meta_backend(engine)
        with intercepted(launch_into(served), lambda name: None, MULTIPROCESSORS):
            window = Window(4, 16, build.ring)
            for length in LENGTHS:
                num_logits = int(length < build.max_num_tokens)  # none after the first chunks of a longer prompt
                backend.prefill(Step(1, window, 2, 4), [0] * length, num_logits)
            for size in (1, 2, 3, 5):
                backend.decode([Step(lane, window, lane, 4) for lane in range(size)], [0] * size)
        for new in sorted(served - loaded):
            print(new)
        assert loaded and served
"""


def compiled_while_serving(mutation: str = "") -> list[str]:
    """The specializations that prompts and batches have and loading lacks, after ``mutation``."""
    command = [sys.executable, "-c", SPECIALIZATIONS, mutation]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()


@pytest.mark.process
def test_no_prompt_and_no_batch_needs_another_kernel() -> None:
    assert compiled_while_serving() == []


@pytest.mark.process
@pytest.mark.slow
def test_the_comparison_sees_kernels_left_out() -> None:
    """Without steps of 32 and 64 tokens, prompts of such lengths need another kernel of each quantization."""
    found = compiled_while_serving("cuda.PROMPT_SIZES = (16,)")
    assert {each.partition("(")[0].partition("[")[0] for each in found} >= {"int8_kernel", "int4_kernel"}


SERVE = """
import sys
from pathlib import Path
import triton
from tests.engines import random_tokens
from trtstream.runtime.loading import load_engine

engine = load_engine(Path(sys.argv[1]))
compiled = []
triton.knobs.compilation.listener = lambda *, src, **others: compiled.append(src.name)
for length in range(1, 80):
    engine.prefill(length % 5, random_tokens(length))
    for size in range(1, 6):
        engine.decode(range(size), [1] * size)
print(*compiled)
"""


@pytest.mark.skipif(why_no_cuda() is not None, reason=f"needs a GPU: {why_no_cuda()}")
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_a_gpu_compiles_nothing_after_loading(quantization: str, tmp_path: Path) -> None:
    settings = {"max_batch_size": 5, "max_attention_window": 60, "max_num_tokens": 70, "quantization": quantization}
    _, engine = build_variant(tmp_path, "falcon-mha-parallel", "cuda", **settings)
    done = subprocess.run([sys.executable, "-c", SERVE, engine], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
