"""Block by block a text gives the same ids as at once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.runtime.clients import byte_tokenizer
from trtstream.errors import TrtstreamError
from trtstream.evaluation import tokens as tokens_module
from trtstream.evaluation.tokens import tokenize
from trtstream.samples.gpl import GPL


def awkward_text() -> str:
    """Everything that a tokenizer may treat otherwise at the edge of a block."""
    rng = random.Random(0)
    pieces = [
        " ",
        "  ",
        "\n\n",
        "\t",
        "\r\n",
        " " * 700,
        "é",
        "日本語",
        "👩‍👩‍👧",
        "don't",
        "12345",
        "...",
        "<|im_end|>",
        "x" * 900,
    ]
    words = GPL.read_text().split(" ")
    return "".join(rng.choice(pieces) if rng.random() < 0.1 else f" {rng.choice(words)}" for _ in range(6000))


@pytest.fixture(scope="module")
def smollm2(smollm2_engine: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2_engine / "tokenizer")


def metaspace() -> PreTrainedTokenizerBase:
    """As SentencePiece: a space before the text's first word, which later blocks must not have."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator([GPL.read_text()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def in_blocks(
    text: str, tokenizer: PreTrainedTokenizerBase, folder: Path, monkeypatch: pytest.MonkeyPatch, block: int = 5000
) -> list[int]:
    monkeypatch.setattr(tokens_module, "BLOCK", block)
    path = folder / "text.txt"
    path.write_bytes(text.encode())
    ids = tokenize(path, tokenizer, len(tokenizer), folder / "ids")
    return ids.read(0, ids.count).tolist()


def at_once(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


@pytest.mark.parametrize("block", [100, 5000, 7001])
def test_smollm2(block: int, smollm2: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = awkward_text()[: 400 * block]
    assert in_blocks(text, smollm2, tmp_path, monkeypatch, block) == at_once(text, smollm2)


def test_sentencepiece_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, text = metaspace(), GPL.read_text()
    found = in_blocks(text, tokenizer, tmp_path, monkeypatch)
    assert found == at_once(text, tokenizer)
    alone = [id for i in range(0, len(text), 5000) for id in at_once(text[i : i + 5000], tokenizer)]
    assert found != alone


def test_a_text_that_cannot_be_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of one letter, counted from the beginning: from another place on they would pair otherwise."""
    backend = Tokenizer(models.BPE(vocab={"a": 0, "aa": 1, "aaa": 2}, merges=[("a", "a"), ("aa", "a")]))
    tokenizer, text = PreTrainedTokenizerFast(tokenizer_object=backend), "a" * 20_000
    assert in_blocks(text, tokenizer, tmp_path, monkeypatch) == at_once(text, tokenizer)


def test_no_more_than_the_limit(tmp_path: Path) -> None:
    assert tokenize(GPL, byte_tokenizer(), 260, tmp_path / "ids", limit=100).count == 100


def test_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "text.txt", byte_tokenizer()
    path.write_bytes("\ufeffa\r\nb".encode())
    ids = tokenize(path, tokenizer, 260, tmp_path / "ids")
    assert tokenizer.decode(ids.read(0, ids.count)) == "a\r\nb"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no text to evaluate: 0 tokens"),
        (b"a", "no text to evaluate: 1 tokens"),
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8 text"),
        (b"\0" * 5000, "NUL characters: it is not a text"),
        (b"good text" * 50_000 + b"\xff", "is not UTF-8 text"),
    ],
)
def test_what_is_no_text(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(TrtstreamError, match=reason):
        tokenize(path, byte_tokenizer(), 260, tmp_path / "ids")


def test_a_tokenizer_of_another_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrtstreamError, match=r"gives the id \d+, and the model's vocabulary ends at 49: it belongs to"):
        tokenize(GPL, byte_tokenizer(), 50, tmp_path / "ids")
