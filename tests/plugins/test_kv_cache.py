"""The KV cache's bytes and its two layouts in memory, as kernels and TensorRT take them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.checkpoints import write_checkpoint
from trtstream.build.checkpoint import open_checkpoint
from trtstream.plugins.kv_cache import (
    cache_dtype,
    head_dim,
    kv_bytes_per_session,
    new_cache,
    spare_slots,
    stored_vectors,
    vectors_to_store,
)
from trtstream.plugins.window import Window
from trtstream.settings import DTYPE_BYTES, BuildConfig, ModelConfig
from trtstream.targets import KV_DTYPES, TARGETS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "llama-gqa")).model


def sizes(dtype: str, chunk: int) -> BuildConfig:
    return BuildConfig(
        max_batch_size=3, max_num_tokens=chunk, max_attention_window=23, max_sink_token_length=6, dtype=dtype
    )


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("chunk", [1, 8, 31])
@pytest.mark.parametrize("target", TARGETS)
def test_a_cache_takes_its_bytes_and_holds_its_window(target: str, chunk: int, dtype: str, model: ModelConfig) -> None:
    build = sizes(dtype, chunk)
    cache = new_cache(model, build, target, CPU)
    assert cache.shape[:4] == (3, model.num_hidden_layers, 2, model.num_key_value_heads)
    assert cache[0].nbytes == kv_bytes_per_session(model, build, target)
    window = Window(4, build.max_sink_token_length, build.ring, spare_slots(model, build, target))
    slots = {window.slot(t) for t in range(200)}
    assert max(slots) == cache.shape[4] - (2 if TARGETS[target].writes_first else 1)
    assert window.spare >= (chunk - 1 if TARGETS[target].writes_first else 0)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_quantized_cache_has_dense_aligned_vectors_and_a_scale_for_each(kv_dtype: str, model: ModelConfig) -> None:
    build = replace(sizes("float16", 8), kv_dtype=kv_dtype)
    cache = new_cache(model, build, "cuda", CPU)
    assert cache[1].is_contiguous()
    vectors = 2 * model.num_hidden_layers * model.num_key_value_heads * build.max_attention_window
    assert cache[0].nbytes == vectors * (model.head_dim + 4) == kv_bytes_per_session(model, build, "cuda")
    assert (cache.dtype, head_dim(cache)) == (cache_dtype(kv_dtype), model.head_dim)
    layer = stored_vectors(cache[2, 1])
    assert layer.numbers.is_contiguous()
    assert layer.numbers.data_ptr() % 16 == 0
    assert layer.scales.is_contiguous()
    # No byte belongs to two of them, and each view is of the cache itself.
    cached = stored_vectors(cache)
    cached.numbers.view(torch.uint8).fill_(1)
    cached.scales.view(torch.uint8).fill_(2)
    found = cache.view(torch.uint8).flatten().bincount()
    assert found.tolist() == [0, 3 * vectors * model.head_dim, 3 * vectors * 4]


def random_vectors() -> torch.Tensor:
    """Of magnitudes from 1e-6 to 1e6, and one of zeros."""
    vectors = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 400)[:, None]
    vectors[7] = 0
    return vectors


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_quantized_vectors_are_within_half_a_step(kv_dtype: str) -> None:
    """Steps of int8 are the scale; those of e4m3 are an eighth of a power of two, and the scale / 512 at least."""
    vectors = random_vectors()
    stored = vectors_to_store(vectors, cache_dtype(kv_dtype))
    assert (stored[7,].float() == 0).all()
    error = (stored.float().double() - vectors).abs()
    scales = stored.scales.double()[:, None]
    steps = scales
    if kv_dtype == "fp8":
        steps = scales * torch.maximum((vectors / scales).abs().log2().floor().exp2() / 8, torch.tensor(2.0**-9))
    assert (error <= 0.5001 * steps).all()
    assert (error / steps).max() > 0.45  # the bound is tight


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_vector_is_quantized_alone(kv_dtype: str) -> None:
    vectors, dtype = random_vectors(), cache_dtype(kv_dtype)
    together = vectors_to_store(vectors, dtype)
    for i in range(0, 400, 57):
        alone = vectors_to_store(vectors[i], dtype)
        assert torch.equal(alone.numbers.view(torch.int8), together.numbers[i].view(torch.int8))
        assert torch.equal(alone.scales, together.scales[i])


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_bound_as_it_is_is_contiguous(target: str, model: ModelConfig) -> None:
    cache = new_cache(model, sizes("float16", 8), target, CPU)
    assert cache[1].is_contiguous() != TARGETS[target].writes_first
    if not TARGETS[target].writes_first:
        return
    for sessions in (slice(1, 2), slice(2), slice(3)):
        for keys, values in cache[sessions].movedim(0, 2):
            for tensor in (keys, values):
                assert tensor.is_contiguous()
                assert (tensor.data_ptr() - cache.data_ptr()) % 256 == 0
