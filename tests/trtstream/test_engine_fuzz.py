"""Hundreds of edited and damaged engines: each is refused in one line, or computes what it did."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz.files import fuzz_files
from tests.checkpoints import write_checkpoint
from tests.runtime.clients import BOS, EOS, byte_tokenizer
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.settings import BuildConfig


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_checkpoint(folder / "checkpoint", "llama-gqa", vocab_size=260, bos_token_id=BOS, eos_token_id=EOS)
    byte_tokenizer().save_pretrained(folder / "checkpoint")
    sizes = BuildConfig(max_batch_size=3, max_num_tokens=16, max_attention_window=32, max_sink_token_length=12)
    build_cpu_engine(open_checkpoint(folder / "checkpoint"), sizes, folder / "engine", lambda done, total: None)
    return folder / "engine"


@pytest.mark.quick("0")
@pytest.mark.parametrize("seed", range(4))
def test_every_edit_is_refused_in_one_line_or_computes_the_same(engine: Path, seed: int) -> None:
    report = fuzz_files(engine, 100, seed)
    assert report.faults == []
    assert report.outcomes["refused in one line"] > 50
    assert report.outcomes["loads and computes the same"] > 0
