"""Engines to evaluate with: of any window over one copy of a checkpoint's weights, with nothing written to disk."""

from __future__ import annotations

import hashlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.engine_dir import TOKENIZER, is_engine, read_engine
from trtstream.errors import TrtstreamError
from trtstream.evaluation.lru import LruBackend
from trtstream.plugins.kv_cache import kv_bytes_per_session
from trtstream.progress import progress_bar
from trtstream.runtime.backend import Backend
from trtstream.runtime.decoder import DecoderWeights, collect_weights
from trtstream.runtime.loading import free_memory, load_engine
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.tokenizer import load_tokenizer
from trtstream.settings import DTYPE_BYTES, BuildConfig, ModelConfig
from trtstream.targets import TARGETS, Target, best_target

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer

CHUNK = 256  # tokens of a prefill chunk


@dataclass(frozen=True)
class Subject:
    """The checkpoint or engine that is evaluated; ``identity`` tells a resumed run whether it is the same."""

    model: ModelConfig
    tokenizer: Tokenizer
    target: str
    dtype: str
    identity: str  # SHA-256 of weights
    weights: DecoderWeights | None
    built: StreamingEngine | None  # an engine directory's, with its own window

    def engine(self, sinks: int, window: int, lru: bool = False) -> StreamingEngine:
        """An engine with S sinks and a window of W tokens; an engine directory has its own only.

        ``lru``: what stays in the window is what `LruBackend` keeps.
        """
        if self.built is not None:
            self.built.reset(0)
            return self.built
        build = BuildConfig(
            max_batch_size=1,
            max_num_tokens=CHUNK,
            max_attention_window=window,
            sink_token_length=sinks,
            max_sink_token_length=sinks,
            dtype=self.dtype,
        )
        build.validate(self.target)
        target = TARGETS[self.target]
        assert target.backend is not None, "open_subject chose it for that"
        assert self.weights is not None, "a checkpoint's"
        cache_bytes = kv_bytes_per_session(self.model, build, self.target)
        _check_memory(cache_bytes, f"a KV cache of {window} tokens", target)
        backend: Backend = (LruBackend if lru else target.backend)(self.model, build, self.weights)
        return StreamingEngine(self.model, build, backend)


def open_subject(path: Path, dtype: str | None) -> Subject:
    """Open a checkpoint or an engine directory. Raises TrtstreamError if it cannot be evaluated here."""
    if is_engine(path):
        return _open_engine(path, dtype)
    checkpoint = open_checkpoint(path)
    name = best_target(lambda target: target.backend is not None)
    target = TARGETS[name]
    dtype = target.dtypes[0] if dtype is None else dtype
    if dtype not in target.dtypes:
        raise TrtstreamError(f"--dtype is {dtype}; the {name} target has {', '.join(target.dtypes)}")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(Path(folder)) if checkpoint.save_tokenizer(Path(folder)) else None
    weights = _read_weights(checkpoint, target, dtype)
    # Enough to tell checkpoints apart: hashing all of a large one takes minutes.
    norm = checkpoint.tensor("norm.weight").float().numpy()
    identity = hashlib.sha256(norm.tobytes()).hexdigest()
    return Subject(checkpoint.model, _required(tokenizer, path), name, dtype, identity, weights, None)


def _open_engine(path: Path, dtype: str | None) -> Subject:
    config = read_engine(path)
    build = config.build_config
    if dtype not in (None, build.dtype):
        raise TrtstreamError(f"--dtype is {dtype} and {path} was built for {build.dtype}; give its checkpoint instead")
    tokenizer = _required(load_tokenizer(path / TOKENIZER), path)
    identity = hashlib.sha256(repr(sorted(config.files.items())).encode()).hexdigest()
    engine = load_engine(path)
    return Subject(config.pretrained_config, tokenizer, config.target, build.dtype, identity, None, engine)


def _required(tokenizer: Tokenizer | None, path: Path) -> Tokenizer:
    if tokenizer is None:
        raise TrtstreamError(f"{path} has no tokenizer to read a text with; add the checkpoint's tokenizer files")
    return tokenizer


def _read_weights(checkpoint: Checkpoint, target: Target, dtype: str) -> DecoderWeights:
    shapes = [shape for recipe in checkpoint.recipes.values() for shape in recipe.sources.values()]
    _check_memory(sum(math.prod(shape) for shape in shapes) * DTYPE_BYTES[dtype], "its weights", target)
    names = checkpoint.tensor_names()
    read = 0
    with progress_bar("Reading weights") as progress:

        def tensor(name: str) -> torch.Tensor:
            nonlocal read
            read += 1
            progress(min(read, len(names)), len(names))
            return checkpoint.tensor(name).to(target.device, getattr(torch, dtype))

        return collect_weights(checkpoint.model, set(names), tensor, pack=target.device == "cpu")


def _check_memory(needed: int, purpose: str, target: Target) -> None:
    available = free_memory(target.device)
    if needed > available:
        raise TrtstreamError(
            f"the model needs {needed / 1e9:.2f} GB for {purpose}, and {available / 1e9:.2f} GB are free; use another "
            "--dtype, fewer tokens or a larger machine"
        )
