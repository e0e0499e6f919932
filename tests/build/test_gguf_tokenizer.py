"""Tokenizers out of GGUF metadata, loaded back as an engine loads them: each key is honoured or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from gguf.constants import Keys
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from tests.checkpoints import write_checkpoint
from tests.gguf_files import write_gguf
from trtstream.build import gguf_tokenizer
from trtstream.build.checkpoint import open_checkpoint
from trtstream.errors import TrtstreamError

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "hi"}]


def sentencepiece(writer: GGUFWriter) -> None:
    """A vocabulary in the old way of Llama: scores in place of merges, and bytes to fall back on."""
    pieces = ["▁", "h", "i", "hi", "▁hi"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-5.0, -4.0, -3.0, -2.0, -1.0])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
    writer.add_chat_template(TEMPLATE)


def byte_level(writer: GGUFWriter, pre: str | None) -> None:
    alphabet = sorted(ByteLevel.alphabet())
    merges = [("1", "2"), ("12", "3"), ("123", "4")]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    tokens = ["<|end|>", "<s>", "</s>", *alphabet, *(a + b for a, b in merges)]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([f"{a} {b}" for a, b in merges])


def gguf_tokenizer_of(
    folder: Path, metadata: Callable[[GGUFWriter], None], variant: str = "llama-gqa"
) -> PreTrainedTokenizerFast:
    write_checkpoint(folder / "hf", variant, vocab_size=320, num_hidden_layers=1)
    path = write_gguf(folder / "model.gguf", folder / "hf", metadata=metadata)
    assert open_checkpoint(path).save_tokenizer(folder / "tokenizer") is True
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def test_sentencepiece_from_gguf(tmp_path: Path) -> None:
    tokenizer = gguf_tokenizer_of(tmp_path, sentencepiece)
    # BOS, the merged "▁hi", and "é" in two bytes.
    assert tokenizer.encode("hié") == [1, 263, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([263, 3 + 0xC3, 3 + 0xA9]) == "hié"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == "<user>hi"


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["a", "Ġ", "1234", "5"]),
        ("smollm", ["a", "Ġ", "1", "2", "3", "4", "5"]),
        ("llama-bpe", ["<s>", "a", "Ġ", "123", "4", "5"]),
        ("falcon", ["a", "Ġ", "123", "4", "5"]),
        ("default", ["a", "Ġ", "123", "4", "5"]),
        ("qwen2", ["a", "Ġ", "1", "2", "3", "4", "5"]),
    ],
)
def test_byte_level_splits_as_its_pre_tokenizer_says(pre: str, pieces: list[str], tmp_path: Path) -> None:
    tokenizer = gguf_tokenizer_of(tmp_path, lambda writer: byte_level(writer, pre))
    text = "a 12345"
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == pieces
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_the_default_split_keeps_characters_of_several_bytes(tmp_path: Path) -> None:
    """Their bytes are shown as letters, some of which look like numbers and punctuation: they are split before."""
    tokenizer = gguf_tokenizer_of(tmp_path, lambda writer: byte_level(writer, "default"))
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("été²… 12345<=x's")
    pieces = ["Ã©tÃ©", "Â²", "âĢ¦", "Ġ", "123", "45", "<=", "x", "'", "s"]
    assert [piece for piece, _ in split] == pieces


def test_tekken_splits_words_at_capital_letters(tmp_path: Path) -> None:
    tokenizer = gguf_tokenizer_of(tmp_path, lambda writer: byte_level(writer, "tekken"))
    assert tokenizer.encode("a") == [1, tokenizer.convert_tokens_to_ids("a")]
    assert tokenizer.backend_tokenizer.model.ignore_merges
    splits = {
        "camelCase HTTPServer": ["camel", "Case", "ĠHTTPServer"],
        "x12 a/b\n\n": ["x", "1", "2", "Ġa", "/b", "ĊĊ"],
        "It's  Ünïcode": ["It", "'s", "Ġ", "ĠÃľnÃ¯code"],
    }
    for text, pieces in splits.items():
        split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert [piece for piece, _ in split] == pieces


@pytest.mark.parametrize(("variant", "pre"), [("gpt-neox", "olmo"), ("mpt-7b", "mpt")])
def test_families_whose_gguf_files_transformers_does_not_read(variant: str, pre: str, tmp_path: Path) -> None:
    tokenizer = gguf_tokenizer_of(tmp_path, lambda writer: byte_level(writer, pre), variant)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a 12345")) == ["a", "Ġ", "1234", "5"]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")


def test_a_phi3_has_a_llamas_tokenizer(tmp_path: Path) -> None:
    llama = gguf_tokenizer_of(tmp_path / "llama", sentencepiece)
    phi3 = gguf_tokenizer_of(tmp_path / "phi3", sentencepiece, "phi3")
    for text in ("hié", "hi hi", "h  i\n"):
        assert phi3.encode(text) == llama.encode(text), text
        assert phi3.decode(phi3.encode(text)) == llama.decode(llama.encode(text))


@pytest.mark.parametrize("variant", ["qwen2", "qwen3"])
def test_qwens_tokenizer_is_transformers_own(variant: str, tmp_path: Path) -> None:
    tokenizer = gguf_tokenizer_of(tmp_path, lambda writer: byte_level(writer, "qwen2"), variant)
    vocabulary, merges = tokenizer.get_vocab(), [("1", "2"), ("12", "3"), ("123", "4")]
    expected = Qwen2Tokenizer(vocabulary, merges, unk_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>")
    for text in ("It's WE'LL\r\n\n  x123456", " naïve\tcafé… (a)  ", "日本 語!?\n 1e5", "e\u0301 a"):
        assert tokenizer.encode(text) == expected.encode(text), text


@pytest.mark.parametrize("add", [None, True, False])
@pytest.mark.parametrize(("kind", "default"), [("llama-bpe", True), ("gpt-2", False), ("sentencepiece", True)])
def test_add_bos_token(kind: str, default: bool, add: bool | None, tmp_path: Path) -> None:
    def write(writer: GGUFWriter) -> None:
        sentencepiece(writer) if kind == "sentencepiece" else byte_level(writer, kind)
        if add is not None:
            writer.add_add_bos_token(add)

    tokenizer = gguf_tokenizer_of(tmp_path, write)
    plain = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.encode("hi") == [1] * (default if add is None else add) + plain


@pytest.mark.parametrize("add", [None, True, False])
def test_add_space_prefix(add: bool | None, tmp_path: Path) -> None:
    def write(writer: GGUFWriter) -> None:
        sentencepiece(writer)
        if add is not None:
            writer.add_add_space_prefix(add)

    tokenizer = gguf_tokenizer_of(tmp_path, write)
    ids = tokenizer.encode("hi hi", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["hi" if add is False else "▁hi", "▁hi"]
    assert tokenizer.decode(ids) == "hi hi"
    assert tokenizer.decode(ids[1:]) == (" hi" if add is False else "hi")


REFUSED: dict[str, Any] = {
    "ggml.add_sep_token": True,
    "ggml.remove_extra_whitespaces": True,
    "ggml.precompiled_charsmap": [1, 2, 3],
    "ggml.normalizer.lowercase": True,
    "ggml.normalizer.strip_accents": True,
    "ggml.suppress_tokens": [1, 2],
    "rwkv.world": "words",
    "ggml.no_such_key": 1,
    "ggml.bos_token_id": 400,
    "ggml.eos_token_id": 400,
    "ggml.eot_token_id": 400,
    "ggml.eom_token_id": 400,
    "ggml.unknown_token_id": 400,
    "ggml.padding_token_id": 400,
}


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    writer.kv_data[0].pop(key, None)
    kinds: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        str: writer.add_string,
        list: writer.add_array,
    }
    kinds[type(value)](key, value)


@pytest.mark.parametrize("name", REFUSED)
def test_keys_that_are_refused(name: str, tmp_path: Path) -> None:
    def write(writer: GGUFWriter) -> None:
        sentencepiece(writer)
        add(writer, f"tokenizer.{name}", REFUSED[name])

    with pytest.raises(TrtstreamError, match=rf"tokenizer\.{name} is .*; use the Hugging Face checkpoint"):
        gguf_tokenizer_of(tmp_path, write)


def test_keys_without_a_say(tmp_path: Path) -> None:
    """They change nothing, and neither do those that may be false."""

    def write(writer: GGUFWriter) -> None:
        sentencepiece(writer)
        for name in gguf_tokenizer.REFUSED_UNLESS_EMPTY:
            add(writer, f"tokenizer.{name}", False)
        for name in gguf_tokenizer.UNUSED:
            add(writer, f"tokenizer.{name}", True if name.startswith("ggml.add") else 3)
        add(writer, "tokenizer.chat_template.tools", "{{ 1 }}")

    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    tokenizers = [gguf_tokenizer_of(tmp_path / "with", write), gguf_tokenizer_of(tmp_path / "without", sentencepiece)]
    one, other = ([tokenizer.encode(text) for text in ("hi", "é hi", "")] for tokenizer in tokenizers)
    assert one == other
    assert tokenizers[0].chat_template == TEMPLATE


def test_the_table_has_each_key_of_the_format() -> None:
    known = {*gguf_tokenizer.HONOURED, *gguf_tokenizer.UNUSED, *gguf_tokenizer.REFUSED_UNLESS_EMPTY}
    keys = {value for name, value in vars(Keys.Tokenizer).items() if not name.startswith("_")}
    assert {key.removeprefix("tokenizer.") for key in keys} - known == {"chat_template.{name}"}


@pytest.mark.parametrize(
    ("model", "pre", "message"),
    [
        ("gpt2", "viking", r"tokenizer\.ggml\.pre is 'viking', supported are default, gpt-2"),
        ("gpt2", None, r"lacks tokenizer\.ggml\.pre, which says how text is split; convert it again"),
        ("t5", "gpt-2", r"tokenizer\.ggml\.model is 't5', supported are llama, gpt2"),
        ("bert", "gpt-2", r"tokenizer\.ggml\.model is 'bert', supported are llama, gpt2"),
    ],
)
def test_tokenizers_that_are_refused(model: str, pre: str | None, message: str, tmp_path: Path) -> None:
    def write(writer: GGUFWriter) -> None:
        byte_level(writer, pre)
        add(writer, "tokenizer.ggml.model", model)

    with pytest.raises(TrtstreamError, match=message):
        gguf_tokenizer_of(tmp_path, write)


def test_bos_without_an_id_is_refused(tmp_path: Path) -> None:
    def write(writer: GGUFWriter) -> None:
        byte_level(writer, "llama-bpe")
        writer.kv_data[0].pop("tokenizer.ggml.bos_token_id")

    with pytest.raises(TrtstreamError, match=r"begin with BOS, but tokenizer\.ggml\.bos_token_id is not set"):
        gguf_tokenizer_of(tmp_path, write)


def test_a_gguf_file_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama-gqa", num_hidden_layers=1)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", tmp_path / "hf"))
    assert checkpoint.save_tokenizer(tmp_path / "tokenizer") is False


@pytest.mark.slow
def test_smollm2(smollm2_gguf: Path, tmp_path: Path) -> None:
    """As transformers makes it of the GGUF file: no merge of SmolLM2's crosses a digit, so that texts agree too."""
    assert open_checkpoint(smollm2_gguf).save_tokenizer(tmp_path) is True
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    texts = [
        "Hello, world!",
        "In 2024 it's 3.14159\n\n  an indented line",
        "naïve café 🙂 日本",
        "<|im_start|>user\nhi",
    ]
    for text in texts:
        assert tokenizer.encode(text) == expected.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert rendered == expected.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert len(tokenizer) == 49152


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokens", "x", r"tokenizer\.ggml\.tokens is 'x', which is not a list of tokens"),
        ("unknown_token_id", "x", r"tokenizer\.ggml\.unknown_token_id is 'x', and the vocabulary has 2\d\d tokens"),
    ],
)
def test_metadata_of_the_wrong_kind(key: str, value: str, message: str, tmp_path: Path) -> None:
    def write(writer: GGUFWriter) -> None:
        byte_level(writer, "gpt-2")
        add(writer, f"tokenizer.ggml.{key}", value)

    with pytest.raises(TrtstreamError, match=message):
        gguf_tokenizer_of(tmp_path, write)
