"""Engines to measure: full caches, and steps as functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.results import Row
from benchmarks.gpu.tensorrt_engines import make_tensorrt_engine
from benchmarks.models import RandomCheckpoint, weight_bytes
from trtstream.plugins.kv_cache import kv_bytes_per_session, stored_vectors, vectors_to_store
from trtstream.runtime.cuda import CudaBackend
from trtstream.runtime.decoder import DecoderWeights
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.static_steps import StaticStep
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.tensorrt import TensorrtBackend
from trtstream.settings import BuildConfig, ModelConfig
from trtstream.targets import TARGETS

Engines = Mapping[str, StreamingEngine]
"""Engines of the same weights and sizes by target, ``cuda`` first."""


def make_engine(model: ModelConfig, build: BuildConfig, weights: DecoderWeights) -> StreamingEngine:
    """A cuda engine on the device of its weights."""
    return StreamingEngine(model, build, CudaBackend(model, build, weights))


def full_engine(model: ModelConfig, build: BuildConfig, weights: DecoderWeights) -> StreamingEngine:
    """A cuda engine whose sessions all have a full cache."""
    return filled(make_engine(model, build, weights))


def filled(engine: StreamingEngine) -> StreamingEngine:
    """The engine, whose sessions all have a full, wrapped cache of random keys and values, at t = 2 W."""
    for lane in range(engine.build.max_batch_size):
        place_session(engine, lane, 2 * engine.build.max_attention_window)
    return engine


def full_engines(bench: Bench, model: ModelConfig, build: BuildConfig, targets: Sequence[str]) -> Engines:
    """Engines of ``targets``, with full caches and the same weights. TensorRT's are built while GPU memory is free."""
    checkpoint = RandomCheckpoint(model, bench.dtype, bench.device)
    of_tensorrt = [target for target in targets if TARGETS[target].library is not None]
    others = {target: filled(make_tensorrt_engine(target, checkpoint, build)) for target in of_tensorrt}
    return {"cuda": full_engine(model, build, checkpoint.weights()), **others}


def engine_bytes(model: ModelConfig, build: BuildConfig, targets: Sequence[str]) -> int:
    """Bytes of the weights and KV caches of `full_engines`."""
    caches = sum(kv_bytes_per_session(model, build, target) for target in targets) * build.max_batch_size
    return len(targets) * weight_bytes(model, build.dtype) + caches


def place_session(engine: StreamingEngine, lane: int, position: int) -> None:
    """Put a session with a full cache of random keys and values into ``lane``, about to be fed token ``position``."""
    cache = engine.backend.session_cache(lane)
    fill(cache)
    ids = [0] * engine.build.max_attention_window
    engine.import_state(lane, SessionState(engine.build.sink_token_length, position, ids, cache))


def fill(cache: torch.Tensor) -> None:
    """Put the same random keys and values into every session's cache, layer by layer: their float32 takes memory."""
    generator = torch.Generator(cache.device).manual_seed(0)
    for layer in cache:
        vectors = stored_vectors(layer)
        noise = torch.randn(vectors.numbers.shape, generator=generator, device=cache.device)
        vectors[()] = vectors_to_store(noise, cache.dtype)


def greedy_step(engine: StreamingEngine, batch: int, first_lane: int = 0) -> Callable[[], None]:
    """A decode step of ``batch`` sessions, each fed what it predicted, until the host has the tokens."""
    lanes = list(range(first_lane, first_lane + batch))
    tokens = [1] * batch

    def run() -> None:
        tokens[:] = engine.decode(lanes, tokens).argmax(dim=-1).tolist()

    return run


def batch_steps(engine: StreamingEngine) -> list[StaticStep]:
    """The decode steps of a GPU target's engine."""
    assert isinstance(engine.backend, CudaBackend | TensorrtBackend)
    return engine.backend.steps


def decode_on_device(engine: StreamingEngine, batch: int) -> Callable[[], object]:
    """The device's part of a decode step alone: the CUDA graph of a batch, over and over with the same inputs."""
    engine.decode(list(range(batch)), [1] * batch)
    step = next(step for step in batch_steps(engine) if step.size == batch)
    return torch.inference_mode()(step.run)


@torch.inference_mode()
def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """``run`` as a CUDA graph; on the CPU as it is."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()

    def replay() -> object:
        graph.replay()
        return run  # and keep alive what the graph reads and writes

    return replay


def does_not_fit(num_bytes: int, what: str) -> Row:
    return {"note": f"does not fit: {num_bytes / 1e9:.1f} GB of {what}"}
