"""The tensors that an engine stores: the checkpoint's, cast to the engine's dtype, and its projections quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trtstream.build.checkpoint import Checkpoint
from trtstream.build.safetensors_writer import SafetensorsWriter
from trtstream.progress import Progress
from trtstream.settings import ModelConfig

PARTS = ("weight", "scales", "zeros")
"""A quantized weight ``x.weight`` is stored as ``x.weight``, ``x.scales``, and in some formats ``x.zeros``."""


def projection_columns(model: ModelConfig) -> dict[str, int]:
    """The projections of a layer, which quantization applies to: the number of columns of their weights, by name."""
    return {
        "qkv": model.hidden_size,
        "attention_output": model.num_attention_heads * model.head_dim,
        "gate_up" if model.gated_mlp else "up": model.hidden_size,
        "down": model.intermediate_size,
    }


@dataclass(frozen=True)
class EngineWeights:
    """A checkpoint's tensors as an engine of ``dtype`` stores them.

    ``quantize`` turns the weight of a projection into its `PARTS`; without it projections are stored as others are.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype
    quantize: Callable[[torch.Tensor], Sequence[torch.Tensor | None]] | None = None

    def write(self, path: Path, progress: Progress) -> None:
        """Write a safetensors file. ``progress`` counts the checkpoint's tensors.

        Peak memory is a few times the largest tensor.
        """
        names = self.checkpoint.tensor_names()
        with SafetensorsWriter(path, list(self.blank())) as file:
            for done, name in enumerate(names):
                progress(done, len(names))
                for stored, tensor in self._stored(name, blank=False).items():
                    file.write(stored, tensor)
        progress(len(names), len(names))

    def blank(self) -> dict[str, torch.Tensor]:
        """The tensors that `write` writes, by name, without contents: on torch's meta device."""
        blank: dict[str, torch.Tensor] = {}
        for name in self.checkpoint.tensor_names():
            blank |= self._stored(name, blank=True)
        return blank

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that `write` writes."""
        return sum(tensor.nbytes for tensor in self.blank().values())

    def _stored(self, name: str, *, blank: bool) -> dict[str, torch.Tensor]:
        """What becomes of a tensor of the checkpoint, by name; ``blank``: nothing is read."""
        tensor = self.checkpoint.blank_tensor(name) if blank else self.checkpoint.tensor(name)
        module, _, kind = name.rpartition(".")
        is_projection = kind == "weight" and module.rpartition(".")[2] in projection_columns(self.checkpoint.model)
        if self.quantize is None or not is_projection:
            return {name: tensor.to(self.dtype)}
        parts = zip(PARTS, self.quantize(tensor), strict=False)
        return {f"{module}.{part}": values for part, values in parts if values is not None}
