"""Tokenizers out of folders and out of GGUF metadata, loaded back as an engine loads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.checkpoints import write_checkpoint
from tests.command_line import run_in_process
from tests.gguf_files import write_gguf
from trtstream.build.checkpoint import open_checkpoint
from trtstream.errors import TrtstreamError
from trtstream.runtime.tokenizer import load_tokenizer

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", "llama-gqa"))
    assert checkpoint.save_tokenizer(tmp_path / "tokenizer") is False
    assert not (tmp_path / "tokenizer").exists()


def add_tokenizer(source: Path, chat_template: object) -> PreTrainedTokenizerFast:
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "h", "i", "hi", *sorted(ByteLevel.alphabet())][:128])}
    backend = Tokenizer(BPE(vocab={**vocab, "i": 3, "h": 2}, merges=[("h", "i")]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(source)
    return tokenizer


def test_a_folder_with_a_tokenizer(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    tokenizer = add_tokenizer(source, TEMPLATE)

    assert open_checkpoint(source).save_tokenizer(tmp_path / "tokenizer") is True
    saved = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert saved.encode("hi") == tokenizer.encode("hi") == [4]
    assert (saved.bos_token, saved.eos_token) == ("<s>", "</s>")
    assert saved.apply_chat_template(MESSAGES, tokenize=False) == "<user>hi"


def test_an_engines_tokenizer_is_that_of_transformers(tmp_path: Path) -> None:
    add_tokenizer(tmp_path, TEMPLATE)
    expected, found = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert found.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    assert found.added_tokens_decoder == expected.added_tokens_decoder
    assert found.special_tokens_map == expected.special_tokens_map
    assert found.chat_template == expected.chat_template
    assert found.unk_token_id is None
    assert found.decode([0, 4, 4]) == expected.decode([0, 4, 4])
    assert found.decode([0, 4], skip_special_tokens=True) == expected.decode([0, 4], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", '{"bos_token": 1}'),
        ("tokenizer_config.json", "[]"),
        ("chat_template.jinja", "\udcff"),
    ],
)
def test_an_engines_damaged_tokenizer_is_one_line(name: str, text: str, tmp_path: Path) -> None:
    add_tokenizer(tmp_path, TEMPLATE)
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(TrtstreamError, match=r"^the tokenizer .* cannot be loaded .*; rebuild the engine$"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (None, (5, 7, 2, 1)),
        (TEMPLATE, (5, 7, 2, 1)),
        ("{% for m in messages %}{{ m['content'] + ' <|end|>\n' }}{% endfor %}", (5, 7, 2, 1, 4)),
        ("{% for m in messages %}<|end|>{{ m['role'] + m['content'] + eos_token }}{% endfor %}", (5, 7, 2, 1)),
        ("{% for m in messages %}{{ m['content'] + '<|end|>more' }}{% endfor %}", (5, 7, 2, 1, 3)),
        ("{{ raise_exception('not today') }}", (5, 7, 2, 1)),
        ("{{ 1 + 'a' }}", (5, 7, 2, 1)),
    ],
)
def test_answers_end_at_all_that_the_checkpoint_names(
    template: str | None, ends: tuple[int, ...], tmp_path: Path
) -> None:
    """generation_config.json, config.json, the tokenizer's EOS and the token that the template puts behind answers."""
    source = write_checkpoint(tmp_path / "model", "llama-gqa", eos_token_id=2)
    (source / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    special = ["<s>", "</s>", "<|start|>", "<|end|>more", "<|end|>"]
    vocab = {token: i for i, token in enumerate([*special, *sorted(ByteLevel.alphabet())][:127])}
    backend = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(source)
    assert open_checkpoint(source).model.eos_token_ids == ends


@pytest.mark.parametrize("name", ["eos", "eot", "eom"])
def test_answers_end_at_all_that_a_gguf_file_names(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama-gqa", num_hidden_layers=1)
    path = write_gguf(
        tmp_path / "model.gguf",
        tmp_path / "hf",
        metadata=lambda writer: writer.add_uint32(f"tokenizer.ggml.{name}_token_id", 9) if name != "eos" else None,
    )
    assert open_checkpoint(path).model.eos_token_ids == ((2,) if name == "eos" else (2, 9))


def old_style(source: Path, templates: object) -> None:
    """Put the templates into tokenizer_config.json, where transformers before 4.50 kept them."""
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": templates}))


def test_of_named_templates_the_default_is_used(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    add_tokenizer(source, {"default": TEMPLATE, "tool_use": "tools"})
    assert (source / "additional_chat_templates" / "tool_use.jinja").is_file()
    assert open_checkpoint(source).save_tokenizer(tmp_path / "tokenizer") is True
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").chat_template == TEMPLATE


@pytest.mark.parametrize("style", ["list", "folder"])
def test_named_templates_without_a_default_are_refused(style: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    add_tokenizer(source, {"tool_use": TEMPLATE, "rag": TEMPLATE} if style == "folder" else None)
    if style == "list":
        old_style(source, [{"name": name, "template": TEMPLATE} for name in ("tool_use", "rag")])
    with pytest.raises(TrtstreamError, match=r"the chat templates \['rag', 'tool_use'\] and no default; name one of"):
        open_checkpoint(source)


@pytest.mark.parametrize("template", [5, [{"name": "default", "template": 5}]])
def test_a_template_that_is_not_a_text_is_refused(template: object, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    add_tokenizer(source, None)
    old_style(source, template)
    with pytest.raises(TrtstreamError, match=r"the chat template of .*model is 5; it must be a text"):
        open_checkpoint(source)


@pytest.mark.parametrize(
    ("name", "fix"), [("tokenizer.json", "fix or remove its"), ("tokenizer.model", r"add a tokenizer\.json, or pip")]
)
def test_a_damaged_tokenizer_is_refused(name: str, fix: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (source / name).write_bytes(b"\x07{ torn")
    with pytest.raises(TrtstreamError, match=rf"the tokenizer of .*model cannot be loaded .*; {fix}"):
        open_checkpoint(source).save_tokenizer(tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()


def with_tokenizer_json(source: Path, **parts: object) -> None:
    add_tokenizer(source, TEMPLATE)
    values = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps({**values, **parts}))


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},  # panics when it is loaded
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},  # panics at the first word
    ],
)
def test_a_tokenizer_whose_library_panics_is_refused(parts: dict[str, object], tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    with_tokenizer_json(source, **parts)
    with pytest.raises(
        TrtstreamError, match=r"^the tokenizer of .*model cannot be loaded \(.*\); fix or remove its tok"
    ):
        open_checkpoint(source)


@pytest.mark.parametrize("part", ["model", "added_tokens"])
def test_a_huge_token_id_is_refused_before_it_takes_memory(part: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    add_tokenizer(source, TEMPLATE)
    values = json.loads((source / "tokenizer.json").read_text())
    (values["model"]["vocab"] if part == "model" else values["added_tokens"][0])["h" if part == "model" else "id"] = (
        2**31
    )
    (source / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(TrtstreamError, match=r"cannot be loaded \(tokenizer\.json has the token id 2147483648, beyond"):
        open_checkpoint(source)


def test_padding_and_truncation_of_a_checkpoint_do_not_count(tmp_path: Path) -> None:
    """The library ends the process where the padding finds no memory."""
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    padding = {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None}
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}
    with_tokenizer_json(source, padding=padding, truncation=truncation)
    assert open_checkpoint(source).save_tokenizer(tmp_path / "tokenizer") is True
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").encode("hihi") == [4, 4]


def test_a_tokenizer_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    add_tokenizer(source, None)
    old_style(source, "{{ messages }}\ud800")
    with pytest.raises(TrtstreamError, match=r"model cannot be saved \(.*surrogates not allowed\); fix its") as caught:
        open_checkpoint(source).save_tokenizer(tmp_path / "tokenizer")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "computes for more than 2 s",
        ),
        ("{{ 10 ** 10 ** 10 }}", "computes powers"),
    ],
)
def test_a_template_that_does_not_end_is_refused(template: str, reason: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    add_tokenizer(source, template)
    result = run_in_process("build", source, "--output", tmp_path / "engine", "--target", "cpu")
    assert result.returncode == 1
    assert f"the chat template of {source} is stopped: it {reason}" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "engine").exists()


def test_a_tokenizer_model_alone_does_not_say_how_to_split(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", "llama-gqa")
    (source / "tokenizer.model").touch()
    with pytest.raises(TrtstreamError, match=r"has neither tokenizer\.json nor tokenizer_config\.json; fetch one"):
        open_checkpoint(source).save_tokenizer(tmp_path / "tokenizer")
