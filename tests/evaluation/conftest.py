"""A tiny random Llama with a token for each byte, and a text of 5,000 tokens for it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.runtime.clients import BOS, EOS, byte_tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "checkpoint"
    write_checkpoint(folder, "llama-gqa", vocab_size=260, bos_token_id=BOS, eos_token_id=EOS)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluation") / "text.txt"
    rng = random.Random(0)
    path.write_text("".join(rng.choice("abcdefgh \n") for _ in range(5000)))
    return path
