"""The cuda target's kernels compile to machine code for real models and GPUs, without spilling a register."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHARED_MEMORY_LIMIT = {80: 166_912, 90: 232_448, 120: 101_376}  # bytes a block


@pytest.mark.parametrize(
    ("capability", "model", "dtype", "kv_dtype"),
    [
        (80, "Llama-2-7B", "bfloat16", None),
        (80, "Llama-3-8B", "float16", "int8"),
        (80, "SmolLM2-135M", "float32", None),
        (90, "Falcon-7B", "bfloat16", None),
        (90, "Llama-2-7B", "float16", "fp8"),
        (120, "Llama-3-8B", "float16", None),
        (120, "Falcon-7B", "bfloat16", "int8"),
        (120, "Llama-2-7B", "bfloat16", "fp8"),
    ],
)
def test_kernels_fit_the_gpu_and_spill_nothing(
    capability: int, model: str, dtype: str, kv_dtype: str | None, tmp_path: Path
) -> None:
    """In its own process: in this one the Triton language is its interpreter."""
    output = tmp_path / "resources.json"
    command = [sys.executable, "-m", "benchmarks.kernel_resources", "--arch", str(capability)]
    done = subprocess.run(
        [
            *command,
            "--model",
            model,
            "--dtype",
            dtype,
            "--kv-dtype",
            "none",
            *(["--kv-dtype", kv_dtype] if kv_dtype else []),
            "--json",
            output,
        ],
        cwd=ROOT,
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads(output.read_text())["kernels"]
    of_cache = ["decode", "prefill"] if kv_dtype else []
    assert [kernel["kernel"] for kernel in kernels] == ["decode", "prefill", "matvec", "matvec, 8 tokens", *of_cache]
    for kernel in kernels:
        assert kernel["stack"] == 0
        assert 0 < kernel["registers"] <= 255
        assert 0 < kernel["shared_memory"] <= SHARED_MEMORY_LIMIT[capability]
