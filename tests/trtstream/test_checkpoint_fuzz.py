"""Hundreds of edited and damaged checkpoints: each is refused in one line, or becomes an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz.checkpoints import fuzz_checkpoints
from tests.build.test_gguf_tokenizer import byte_level, sentencepiece
from tests.checkpoints import write_checkpoint
from tests.gguf_files import write_gguf
from tests.runtime.clients import BOS, EOS, byte_tokenizer

SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "vocab_size": 320}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A Llama with a tokenizer, a Falcon in shards, and both as GGUF."""
    folder = tmp_path_factory.mktemp("sources")
    ids = {"bos_token_id": BOS, "eos_token_id": EOS}
    llama = write_checkpoint(folder / "llama", "llama-gqa", intermediate_size=32, **SMALL, **ids)
    byte_tokenizer().save_pretrained(llama)
    falcon = write_checkpoint(folder / "falcon", "falcon-40b", max_shard_size="20KB", **SMALL)
    single = write_checkpoint(folder / "single", "falcon-40b", **SMALL)
    return [
        *(llama, falcon),
        write_gguf(folder / "llama.gguf", llama, metadata=sentencepiece),
        write_gguf(folder / "falcon.gguf", single, metadata=lambda writer: byte_level(writer, "falcon")),
    ]


def test_every_edit_is_refused_in_one_line_or_taken(sources: list[Path]) -> None:
    report = fuzz_checkpoints(sources, 200, 0)
    assert report.faults == []
    assert report.outcomes["refused"] > 80
    assert report.outcomes["taken"] > 20
