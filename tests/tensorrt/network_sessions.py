"""Sessions fed through one of our networks in the interpreter, by the contract of `plugins/tensorrt_io.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from tests.checkpoints import write_checkpoint
from tests.tensorrt.interpreter import Interpreter
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.tensorrt.network import define_network
from trtstream.plugins import tensorrt_io as io
from trtstream.plugins.decode_plan import Step, step_rotation
from trtstream.plugins.kv_cache import cache_slots, spare_slots
from trtstream.plugins.positions import PositionEncoding
from trtstream.plugins.tensorrt_library import new_logger
from trtstream.plugins.window import Window
from trtstream.settings import BuildConfig, ModelConfig

TARGET = "tensorrt-rtx"
RING, MAX_SINKS = 8, 4
BUILD = BuildConfig(
    max_batch_size=4, max_num_tokens=6, max_attention_window=MAX_SINKS + RING, max_sink_token_length=MAX_SINKS
)


@dataclass(frozen=True)
class Tensors:
    """A network's weights, which its reference reads as a `Checkpoint`'s."""

    model: ModelConfig
    tensors: dict[str, torch.Tensor]

    def tensor_names(self) -> list[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def random_weights(folder: Path, variant: str, dtype: torch.dtype = torch.float32, **overrides: object) -> Tensors:
    """Those of a variant's checkpoint, which is written into ``folder``."""
    checkpoint = open_checkpoint(write_checkpoint(folder, variant, **overrides))
    return Tensors(checkpoint.model, {name: checkpoint.tensor(name).to(dtype) for name in checkpoint.tensor_names()})


class NetworkSessions:
    """Sessions of the network of a model, with ``sinks[i]`` sinks in session i; their caches begin with garbage."""

    def __init__(self, trt: ModuleType, weights: Tensors, build: BuildConfig, sinks: Sequence[int]) -> None:
        self.builder = trt.Builder(new_logger(trt))
        self.network = self.builder.create_network(0)
        self._memory = define_network(trt, self.network, weights.model, build, TARGET, weights.tensors)
        self._interpreter = Interpreter(trt, self.network)
        self._positions = PositionEncoding.of(weights.model)
        self._model, self._build = weights.model, build
        self._scratch_slot = cache_slots(self._model, build, TARGET) - 1
        spare = spare_slots(self._model, build, TARGET)
        self.windows = [Window(s, build.max_sink_token_length, build.ring, spare) for s in sinks]
        self.t = [0] * len(sinks)
        self.ring_first = list(sinks)
        shapes = io.input_shapes(weights.model, build, TARGET, len(sinks), 1, 1)
        generator = torch.Generator().manual_seed(0)
        self.caches = {
            name: torch.randn(shapes[name], generator=generator).to(getattr(torch, build.dtype))
            for names in io.cache_names(weights.model)
            for name in names
        }

    def decode(self, tokens: Mapping[int, int]) -> torch.Tensor:
        """A token for each of some sessions, by their number; the others are idle. Logits [len(tokens), vocab]."""
        batch = range(len(self.windows))
        fed = {session: [token] for session, token in tokens.items()}
        return self._call(slice(None), [(s, fed.get(s)) for s in batch], sorted(tokens))

    def prefill(self, session: int, tokens: Sequence[int], size: int) -> torch.Tensor:
        """Chunks of ``size`` tokens, cut where the contract cuts them; logits [len(tokens), vocab]."""
        logits, tokens = [], list(tokens)
        while tokens:
            length = io.chunk_lengths(self.windows[session], self.t[session], min(size, len(tokens)))[0]
            chunk, tokens = tokens[:length], tokens[length:]
            logits.append(self._call(slice(session, session + 1), [(session, chunk)], range(length)))
        return torch.cat(logits)

    def _call(
        self, sessions: slice, fed: Sequence[tuple[int, Sequence[int] | None]], logits_rows: Sequence[int]
    ) -> torch.Tensor:
        tokens, write_slots, rows, queries, at = [], [], [], [], []
        for session, new in fed:
            if new is None:
                tokens.append([0])
                write_slots.append(self._scratch_slot)
                rows.append((0, 0, 0))
                queries.append([(0, 0)])
                at.append((0, 0))
                continue
            t, window = self.t[session], self.windows[session]
            step = Step(session, window, t, self.ring_first[session])
            tokens.append(list(new))
            write_slots.append(window.slot(t))
            rows.append(io.row(step, len(new)))
            queries.append(io.queries(step, len(new)))
            at += [(t + j, window.cache_position(t + j)) for j in range(len(new))]
            self.t[session] += len(new)
        integers = {
            io.TOKENS: tokens,
            io.WRITE_SLOTS: write_slots,
            io.ROWS: rows,
            io.QUERIES: queries,
            io.LOGITS_ROWS: list(logits_rows),
        }
        inputs = {name: torch.tensor(values, dtype=torch.int32) for name, values in integers.items()}
        if self._positions.slopes is None:
            inputs[io.ROTATION] = step_rotation(self._positions, torch.tensor(at)).unflatten(0, (len(fed), -1))
        inputs |= {name: cache[sessions] for name, cache in self.caches.items()}
        return self._interpreter.run(inputs)[io.LOGITS]

    def builds(self) -> bool:
        """Whether TensorRT's builder takes the network, for decode and for prefill."""
        config = self.builder.create_builder_config()
        for profile in (io.DECODE, io.PREFILL):
            smallest, largest = (
                io.input_shapes(self._model, self._build, TARGET, *sizes)
                for sizes in ((1, 1, 1), io.largest_call(self._build, profile))
            )
            shapes = self.builder.create_optimization_profile()
            for name in smallest:
                shapes.set_shape(name, smallest[name], largest[name], largest[name])
            config.add_optimization_profile(shapes)
        return self.builder.build_serialized_network(self.network, config) is not None
