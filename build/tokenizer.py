"""Tokenizers of checkpoints, saved the way transformers loads them, chat template included."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from trtstream.errors import TrtstreamError

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Values of tokenizer.ggml.pre that mean the same split.
LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3")
GPT2 = ("default", "gpt-2")


def save_from_folder(source: Path, folder: Path) -> bool:
    """Save the tokenizer of a Hugging Face folder into ``folder``; False if it has none."""
    if not any((source / name).is_file() for name in FILES):
        return False
    mend = "mend or remove its tokenizer files"
    if not (source / "tokenizer.json").is_file():
        if not (source / "tokenizer_config.json").is_file():
            # transformers would guess the class, and cut text otherwise than the model was trained on.
            raise TrtstreamError(
                f"{source} has neither tokenizer.json nor tokenizer_config.json; fetch one of them too"
            )
        mend = "add a tokenizer.json, or pip install 'sentencepiece<0.2.2' to have its tokenizer.model converted"
    _load(source, source, mend).save_pretrained(folder)
    return True


def save_from_gguf(path: Path, pre_tokenizer: str, folder: Path) -> None:
    """Save the tokenizer that a GGUF file's metadata describe into ``folder``.

    ``pre_tokenizer`` is the file's ``tokenizer.ggml.pre``: how text is split before byte-level BPE merges.
    """
    with tempfile.TemporaryDirectory() as alone:
        # Alone in a folder, so that no tokenizer file beside it is mixed in.
        link = Path(alone) / "model.gguf"
        link.symlink_to(path.resolve())
        tokenizer = _load(path, link.parent, "use the Hugging Face checkpoint", gguf_file=link.name)
    model = tokenizer.backend_tokenizer.model
    if type(model).__name__ == "BPE" and not model.byte_fallback:
        tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer(path, pre_tokenizer)
        model.ignore_merges = pre_tokenizer in LLAMA3
    tokenizer.save_pretrained(folder)


def _pre_tokenizer(path: Path, name: str) -> Any:
    """The split that belongs to a name in GGUF metadata. A wrong one gives other tokens than those of the training,
    without any error, so that an unknown name is refused."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Punctuation, Sequence, Split

    if name in GPT2:
        return ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if name == "falcon":
        return Sequence(
            [
                Punctuation("contiguous"),
                ByteLevel(add_prefix_space=False),
                Digits(individual_digits=False),
                Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    if name in LLAMA3:
        words = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        return Sequence([Split(Regex(words), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    raise TrtstreamError(
        f"{path}: the pre-tokenizer {name!r} is not supported; supported are "
        f"{', '.join((*GPT2, 'smollm', 'falcon', *LLAMA3))}: use the Hugging Face checkpoint"
    )


def _load(source: Path, folder: Path, mend: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions too
        reason = " ".join(str(error).split())
        raise TrtstreamError(f"the tokenizer of {source} cannot be loaded ({reason}); {mend}") from error
    if not tokenizer.is_fast:
        raise TrtstreamError(f"the tokenizer of {source} has no fast version; {mend}")
    return tokenizer
