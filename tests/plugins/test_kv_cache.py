"""The KV cache's bytes and its two layouts in memory, as kernels and TensorRT take them."""

from __future__ import annotations

import pytest
import torch

from tests.checkpoints import write_checkpoint
from trtstream.build.checkpoint import open_checkpoint
from trtstream.plugins.kv_cache import kv_bytes_per_session, new_cache, spare_slots
from trtstream.plugins.window import Window
from trtstream.settings import DTYPE_BYTES, BuildConfig, ModelConfig
from trtstream.targets import TARGETS

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
