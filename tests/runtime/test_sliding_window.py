"""Models that were trained with a sliding window: transformers' logits past it, for a ring of that many tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import write_checkpoint
from tests.engines import build_variant, load_on_cpu, random_tokens
from trtstream.build.checkpoint import open_checkpoint
from trtstream.errors import TrtstreamError
from trtstream.settings import BuildConfig, check_against_model, default_window

WINDOW = 20
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0},
}


@pytest.mark.parametrize("variant", SLIDING)
def test_a_ring_of_the_sliding_window_is_the_model(variant: str, tmp_path: Path) -> None:
    tokens = random_tokens(4 * WINDOW)
    write_checkpoint(tmp_path / "sliding", variant, **SLIDING[variant])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sliding", dtype=torch.float32, attn_implementation="sdpa")
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
    for ring, is_the_model in ((WINDOW, True), (WINDOW - 1, False)):
        settings = {"max_batch_size": 2, "max_attention_window": ring, "max_num_tokens": 16}
        sinks = {"sink_token_length": 0, "max_sink_token_length": 0}
        engine = load_on_cpu(build_variant(tmp_path / str(ring), variant, **settings, **sinks)[1])
        decoded = torch.cat([engine.decode([0], [token]) for token in tokens])
        for found in (decoded, engine.prefill(1, tokens)[None]):
            error = (found - expected[-len(found) :]).abs().max() / expected.std()
            assert (error < 1e-4) == is_the_model, error


@pytest.mark.parametrize("variant", SLIDING)
def test_a_larger_ring_is_refused(variant: str, tmp_path: Path) -> None:
    model = open_checkpoint(write_checkpoint(tmp_path, variant, **SLIDING[variant])).model
    assert default_window(model) == WINDOW
    check_against_model(BuildConfig(max_attention_window=WINDOW + 4), model, force=False)
    message = rf"keeps 21 recent tokens, and the checkpoint's layers see {WINDOW} \(sliding_window\); use at most 24"
    with pytest.raises(TrtstreamError, match=message):
        check_against_model(BuildConfig(max_attention_window=WINDOW + 5), model, force=True)


@pytest.mark.parametrize("options", [{}, {"use_sliding_window": True, "max_window_layers": 3}])
def test_without_sliding_layers_there_is_no_limit(options: dict[str, Any], tmp_path: Path) -> None:
    assert (
        open_checkpoint(write_checkpoint(tmp_path, "qwen2", sliding_window=WINDOW, **options)).model.sliding_window
        is None
    )
