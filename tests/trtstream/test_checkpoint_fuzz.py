"""Edited and damaged checkpoints: each is refused in one line, or becomes an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz.checkpoints import fuzz_checkpoints
from tests.build.test_gguf_tokenizer import byte_level, sentencepiece
from tests.checkpoints import write_checkpoint
from tests.gguf_files import write_gguf
from tests.runtime.clients import BOS, EOS, byte_tokenizer

pytestmark = pytest.mark.process
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "vocab_size": 320}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A Llama, a Mistral and a Qwen2 with tokenizers, a Falcon in shards, and GGUF files of all but the Mistral."""
    folder = tmp_path_factory.mktemp("sources")
    ids = {"bos_token_id": BOS, "eos_token_id": EOS}
    llama = write_checkpoint(folder / "llama", "llama-gqa", intermediate_size=32, **SMALL, **ids)
    falcon = write_checkpoint(folder / "falcon", "falcon-40b", max_shard_size="20KB", **SMALL)
    mistral = write_checkpoint(folder / "mistral", "mistral", intermediate_size=32, **SMALL)
    qwen2 = write_checkpoint(folder / "qwen2", "qwen2", intermediate_size=32, **SMALL)
    for model in (llama, mistral, qwen2):
        byte_tokenizer().save_pretrained(model)
    single = write_checkpoint(folder / "single", "falcon-40b", **SMALL)
    return [
        *(llama, falcon, mistral, qwen2),
        write_gguf(folder / "llama.gguf", llama, metadata=sentencepiece),
        write_gguf(folder / "falcon.gguf", single, metadata=lambda writer: byte_level(writer, "falcon")),
        write_gguf(folder / "qwen2.gguf", qwen2, metadata=lambda writer: byte_level(writer, "qwen2")),
    ]


@pytest.mark.parametrize(("count", "seed"), [(20, 0), pytest.param(400, 1, marks=pytest.mark.slow)])
def test_every_edit_is_refused_in_one_line_or_taken(sources: list[Path], count: int, seed: int) -> None:
    report = fuzz_checkpoints(sources, count, seed)
    assert report.faults == []
    assert report.outcomes["refused"] > count // 3
    assert report.outcomes["taken"] > count // 12
