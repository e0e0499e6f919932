"""What the parts share: the device, the sizes to measure, and the bandwidth from which floors are computed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from benchmarks.gpu.launches import Engine
from benchmarks.gpu.results import Row
from benchmarks.models import FALCON_7B, LLAMA_2_7B, SMOLLM2, TINY_FALCON, TINY_LLAMA, TINYLLAMA
from benchmarks.timing import bandwidths
from trtstream.plugins.cuda_device import FP8_CAPABILITY
from trtstream.settings import BuildConfig, ModelConfig


@dataclass(frozen=True)
class Case:
    """One measurement of a part. Its rows are in the results all or not at all.

    ``labels`` say what is measured: they begin each row, and differ from those of the part's other cases. ``engines``
    are those whose kernels it launches, to be compiled beforehand.
    """

    labels: Row
    run: Callable[[], Iterable[Row]]
    engines: list[Engine] = field(default_factory=list)


FAR = 4_000_000  # a position far beyond any that the cache still has


@dataclass(frozen=True)
class Sizes:
    """The sizes of the measurements."""

    models: dict[str, ModelConfig]  # the main one first, as its rows are worth most
    main_model: str  # for comparisons with other methods
    dtype: str
    windows: tuple[int, ...]
    main_windows: tuple[int, ...]  # of comparisons
    batches: tuple[int, ...]
    chunks: tuple[int, ...]
    short_prompts: tuple[int, ...]  # tokens; a turn of a chat, where launches cost more than arithmetic
    correctness_window: int
    calls: int  # in a median
    tensorrt_models: dict[str, ModelConfig]  # whose engines build in less than a minute each
    compiled_layers: int  # torch.compile unrolls layers, so it compiles a model cut to that many
    copied_bytes: int
    weight_copies_bytes: int  # of a weight's copies, more than the L2 cache holds


FULL = Sizes(
    models={"Llama-2-7B": LLAMA_2_7B, "SmolLM2-135M": SMOLLM2, "Falcon-7B": FALCON_7B},
    main_model="Llama-2-7B",
    dtype="float16",
    windows=(1024, 4096, 256),
    main_windows=(1024, 4096),
    batches=(1, 8, 64),
    chunks=(512, 2048),
    short_prompts=(16, 64),
    correctness_window=1024,
    calls=50,
    tensorrt_models={"SmolLM2-135M": SMOLLM2, "TinyLlama-1.1B": TINYLLAMA},
    compiled_layers=4,
    copied_bytes=2 << 30,
    weight_copies_bytes=256 << 20,
)
TINY = Sizes(
    models={"tiny Llama": TINY_LLAMA, "tiny Falcon": TINY_FALCON},
    main_model="tiny Llama",
    dtype="float32",
    windows=(16, 32),
    main_windows=(16, 32),
    batches=(1, 4),
    chunks=(8, 32),
    short_prompts=(3,),
    correctness_window=20,
    calls=3,
    tensorrt_models={"tiny Llama": TINY_LLAMA},
    compiled_layers=1,
    copied_bytes=1 << 20,
    weight_copies_bytes=1 << 16,
)


WORKSPACE = 2 << 30  # activations, CUDA graphs, kernels


@dataclass
class Bench:
    device: torch.device
    sizes: Sizes

    @property
    def title(self) -> str:
        """Names the device, and the sizes if they are not the full ones."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return name if self.sizes is FULL else f"{name}, tiny sizes"

    @cached_property
    def bandwidths(self) -> dict[str, float]:
        """Measured bytes per second: ``copy`` and ``read``."""
        return bandwidths(self.device, min(self.sizes.copied_bytes, self.free_bytes() // 4))

    @property
    def attained_bandwidth(self) -> float:
        """Bytes per second, the larger of both."""
        return max(self.bandwidths.values())

    @property
    def multiprocessors(self) -> int:
        if self.device.type != "cuda":
            return 1
        return torch.cuda.get_device_properties(self.device).multi_processor_count

    def floor_ms(self, num_bytes: int) -> float:
        """The least time in which that many bytes can be read."""
        return num_bytes / self.attained_bandwidth * 1e3

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
    def kv_dtypes(self) -> tuple[str, ...]:
        """The 8-bit KV caches that the device can have."""
        old = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) < FP8_CAPABILITY
        return ("int8",) if old else ("int8", "fp8")

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


def goal(text: str, met: bool, reached: float, bound: float) -> Row:
    """Columns of a goal's row: the figure that was reached, and the best that arithmetic allows."""
    return {"goal": text, "met": met, "reached": reached, "bound": bound}
