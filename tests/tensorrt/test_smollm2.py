"""A real checkpoint's network, in the interpreter."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.tensorrt.interpreted_engine import interpreted_engine
from trtstream.build.checkpoint import open_checkpoint
from trtstream.samples.gpl import GPL
from trtstream.settings import BuildConfig


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "expected", "tolerance"), [("float32", 21.1092, 0.002), ("bfloat16", 21.25, 0.03)])
def test_perplexity(dtype: str, expected: float, tolerance: float, smollm2_gguf: Path, smollm2_engine: Path) -> None:
    """700 tokens, S = 4, W = 128.

    On the same text mit-han-lab/streaming-llm gives 21.1092 in float32, and the cpu target 21.237 in bfloat16. Here
    torch multiplies, which gives 21.237 where the CPU has bfloat16 products and 21.264 elsewhere.
    """
    checkpoint = open_checkpoint(smollm2_gguf)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_engine / "tokenizer")
    ids = tokenizer(GPL.read_text(), add_special_tokens=False)["input_ids"][:700]
    engine = interpreted_engine(checkpoint, BuildConfig(max_batch_size=1, max_attention_window=128, dtype=dtype))
    assert math.exp(-engine.score(0, ids)[1:].mean()) == pytest.approx(expected, abs=tolerance)
    engine.reset(0, 3)  # the figure moves when a sink is missing
    assert math.exp(-engine.score(0, ids)[1:].mean()) != pytest.approx(expected, abs=tolerance)
