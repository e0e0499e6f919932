"""What the parts share: the device, the sizes to measure, and the bandwidth from which floors are computed."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from benchmarks.models import FALCON_7B, LLAMA_2_7B, SMOLLM2, TINY_FALCON, TINY_LLAMA, TINYLLAMA
from benchmarks.timing import bandwidths
from trtstream.settings import BuildConfig, ModelConfig

Row = dict[str, Any]
"""One measurement: flat, JSON's types, every figure's unit in its name (``ms``: median milliseconds)."""

FAR = 4_000_000  # a position far beyond any that the cache still has


@dataclass(frozen=True)
class Sizes:
    """The sizes of the measurements."""

    models: dict[str, ModelConfig]
    main_model: str  # for comparisons with other methods
    dtype: str
    windows: tuple[int, ...]
    main_windows: tuple[int, ...]  # of comparisons
    batches: tuple[int, ...]
    chunks: tuple[int, ...]
    correctness_window: int
    calls: int  # in a median
    tensorrt_models: dict[str, ModelConfig]  # whose engines build in less than a minute each
    compiled_layers: int  # torch.compile unrolls layers, so it compiles a model cut to that many
    copied_bytes: int


FULL = Sizes(
    models={"SmolLM2-135M": SMOLLM2, "Llama-2-7B": LLAMA_2_7B, "Falcon-7B": FALCON_7B},
    main_model="Llama-2-7B",
    dtype="float16",
    windows=(256, 1024, 4096),
    main_windows=(1024, 4096),
    batches=(1, 8, 64),
    chunks=(512, 2048),
    correctness_window=1024,
    calls=50,
    tensorrt_models={"SmolLM2-135M": SMOLLM2, "TinyLlama-1.1B": TINYLLAMA},
    compiled_layers=4,
    copied_bytes=2 << 30,
)
TINY = Sizes(
    models={"tiny Llama": TINY_LLAMA, "tiny Falcon": TINY_FALCON},
    main_model="tiny Llama",
    dtype="float32",
    windows=(16, 32),
    main_windows=(16, 32),
    batches=(1, 4),
    chunks=(8, 32),
    correctness_window=20,
    calls=3,
    tensorrt_models={"tiny Llama": TINY_LLAMA},
    compiled_layers=1,
    copied_bytes=1 << 20,
)


class CheckFailed(Exception):
    """Figures are outside their tolerances. They are recorded, and the script exits 1."""


WORKSPACE = 2 << 30  # activations, CUDA graphs, kernels


@dataclass
class Bench:
    device: torch.device
    sizes: Sizes

    @cached_property
    def bandwidths(self) -> dict[str, float]:
        """Measured bytes per second: ``copy`` and ``read``."""
        return bandwidths(self.device, min(self.sizes.copied_bytes, self.free_bytes() // 4))

    def floor_ms(self, num_bytes: int) -> float:
        """The least time in which that many bytes can be read: at the larger bandwidth."""
        return num_bytes / max(self.bandwidths.values()) * 1e3

    def free_bytes(self) -> int:
        """Memory that is free for new tensors."""
        if self.device.type != "cuda":
            return sys.maxsize  # tests, with tiny models
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def fits(self, num_bytes: int) -> bool:
        """Whether that many bytes can be allocated, with space left to compute in."""
        return num_bytes + WORKSPACE <= self.free_bytes()

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.sizes.dtype)

    @property
    def main(self) -> ModelConfig:
        return self.sizes.models[self.sizes.main_model]

    def build(self, window: int, batch: int, chunk: int = 512) -> BuildConfig:
        return BuildConfig(
            max_batch_size=batch, max_num_tokens=chunk, max_attention_window=window, dtype=self.sizes.dtype
        )


def goal(text: str, met: bool) -> Row:
    return {"goal": text, "met": met}
