"""The ``cpu`` target: weights in floats or blocks, and the decode step compiled for this machine's CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trtstream import __version__
from trtstream.build.checkpoint import Checkpoint
from trtstream.build.engine_weights import EngineWeights
from trtstream.build.memory import MemoryEstimate, memory_estimate, tensor_by_tensor_peak
from trtstream.engine_dir import KERNEL, TOKENIZER, WEIGHTS, EngineConfig, new_directory, write_config
from trtstream.plugins.block_weight import BLOCK_FORMATS, quantize_blocks
from trtstream.plugins.cpu_kernel import compile_kernel, compiled_instruction_sets
from trtstream.progress import Progress
from trtstream.settings import BuildConfig
from trtstream.targets import KEPT, TARGETS

LARGEST_TILE = 16  # rows: the lanes of the widest vectors in plugins/cpu/simd.h


def build_cpu_engine(checkpoint: Checkpoint, build: BuildConfig, output: Path, progress: Progress) -> EngineConfig:
    """Write the engine directory ``output`` atomically.

    ``progress`` counts the checkpoint's tensors. Peak memory is a few times the largest tensor.
    """
    with new_directory(output) as folder:
        compile_kernel(checkpoint.model, build, folder / KERNEL)
        cpu_weights(checkpoint, build).write(folder / WEIGHTS, progress)
        checkpoint.save_tokenizer(folder / TOKENIZER)
        toolchain = {
            "trtstream": __version__,
            "torch": torch.__version__,
            "instruction_sets": compiled_instruction_sets(),
        }
        return write_config(folder, "cpu", checkpoint.model, build, toolchain, checkpoint.fingerprint())


def cpu_weights(checkpoint: Checkpoint, build: BuildConfig) -> EngineWeights:
    """The engine's weights."""
    dtype = getattr(torch, build.dtype)
    if build.quantization == "none":
        return EngineWeights(checkpoint, dtype)
    return WeightsInBlocks(checkpoint, dtype, quantization=build.quantization)


def default_quantization(checkpoint: Checkpoint, target: str) -> str:
    """The quantization where neither it nor a dtype is asked for: a checkpoint's blocks are kept, if it has any."""
    has_blocks = any(map(checkpoint.block_format, checkpoint.tensor_names()))
    return KEPT if has_blocks and KEPT in TARGETS[target].quantizations else "none"


@dataclass(frozen=True)
class WeightsInBlocks(EngineWeights):
    """A checkpoint's tensors with its own blocks, ``x.weight`` as ``x.Q4_1``. All else is in the engine's dtype.

    ``quantization`` makes blocks of float matrices too: Q8_0 for ``int8``; for ``int4`` Q4_1, but Q8_0 of the embedding
    and the head, which are more sensitive.
    """

    quantization: str = KEPT

    def _stored(self, name: str, *, blank: bool) -> dict[str, torch.Tensor]:
        shape = self.checkpoint.blank_tensor(name).shape
        kept = self.checkpoint.block_format(name)
        stored = kept or self._wanted(name)
        if stored is None or len(shape) != 2 or not self._ends_with_a_tile(name):
            return super()._stored(name, blank=blank)
        if blank:
            row_bytes = BLOCK_FORMATS[stored].row_bytes(shape[1])
            blocks = torch.empty(shape[0], row_bytes, dtype=torch.uint8, device="meta")
        elif kept:
            blocks = self.checkpoint.blocks(name)
        else:
            blocks = quantize_blocks(self.checkpoint.tensor(name), stored)
        return {f"{name.removesuffix('weight')}{stored}": blocks}

    def _wanted(self, name: str) -> str | None:
        """The format for a matrix that is stored in floats."""
        if self.quantization == "int4":
            return "Q8_0" if name in ("embedding.weight", "lm_head.weight") else "Q4_1"
        return "Q8_0" if self.quantization == "int8" else None

    def _ends_with_a_tile(self, name: str) -> bool:
        """Whether up begins where a tile does, behind the gate's rows; no known model has other sizes."""
        return not name.endswith("gate_up.weight") or self.checkpoint.model.intermediate_size % LARGEST_TILE == 0


def cpu_memory(checkpoint: Checkpoint, build: BuildConfig) -> MemoryEstimate:
    """See `trtstream.build.memory.estimate_memory`."""
    weights = cpu_weights(checkpoint, build)
    return memory_estimate(checkpoint, build, "cpu", weights.nbytes, tensor_by_tensor_peak(checkpoint))
