"""Tokenizers of checkpoints, chat template included, and the tokens at which their answers end."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Punctuation, Sequence, Split

from trtstream.errors import TrtstreamError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER = "placeholder answer"
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class ByteLevelSplit:
    """How text is split before byte-level BPE merges, and whether a piece that is a token as it is skips the merges."""

    pre_tokenizer: PreTokenizer
    ignore_merges: bool = False


BYTES = ByteLevel(add_prefix_space=False)
GPT2 = ByteLevelSplit(BYTES)
LLAMA3 = ByteLevelSplit(
    Sequence([Split(Regex(LLAMA3_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
    ignore_merges=True,
)
SPLITS = {
    "default": GPT2,
    "gpt-2": GPT2,
    "smollm": ByteLevelSplit(Sequence([Digits(individual_digits=True), BYTES])),
    "falcon": ByteLevelSplit(
        Sequence(
            [
                Punctuation("contiguous"),
                BYTES,
                Digits(individual_digits=False),
                Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    ),
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "falcon3": LLAMA3,
}
"""By the name that GGUF metadata give (``tokenizer.ggml.pre``)."""


def load_from_folder(source: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a Hugging Face folder; None if it has none."""
    if not any((source / name).is_file() for name in FILES):
        return None
    fix = "fix or remove its tokenizer files"
    if not (source / "tokenizer.json").is_file():
        if not (source / "tokenizer_config.json").is_file():
            # transformers would guess the class, and split text differently from the model's training.
            raise TrtstreamError(
                f"{source} has neither tokenizer.json nor tokenizer_config.json; fetch one of them too"
            )
        fix = "add a tokenizer.json, or pip install 'sentencepiece<0.2.2' to have its tokenizer.model converted"
    return _load(source, source, fix)


def load_from_gguf(path: Path, split: str) -> PreTrainedTokenizerBase:
    """The tokenizer that a GGUF file's metadata describe. ``split`` is one of `SPLITS`.

    Another split would give other tokens than those of the training, without any error, so an unknown name is refused.
    """
    with tempfile.TemporaryDirectory() as empty:
        # A link in an empty folder, so that no tokenizer file next to the original is mixed in.
        link = Path(empty) / "model.gguf"
        link.symlink_to(path.resolve())
        tokenizer = _load(path, link.parent, "use the Hugging Face checkpoint", gguf_file=link.name)
    model = tokenizer.backend_tokenizer.model
    if type(model).__name__ == "BPE" and not model.byte_fallback:
        if split not in SPLITS:
            raise TrtstreamError(
                f"{path}: the pre-tokenizer {split!r} is not supported; supported are {', '.join(SPLITS)}: use the "
                "Hugging Face checkpoint"
            )
        tokenizer.backend_tokenizer.pre_tokenizer = SPLITS[split].pre_tokenizer
        model.ignore_merges = SPLITS[split].ignore_merges
    return tokenizer


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an answer: the tokenizer's EOS, and the token that the chat template puts behind answers."""
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        turns = [("user", "question"), ("assistant", ANSWER), ("user", "question")]
        conversation = [{"role": role, "content": content} for role, content in turns]
        try:
            text = str(tokenizer.apply_chat_template(conversation, tokenize=False))
        except Exception:  # a template may raise anything; serving it says more
            return ends
        behind = text.partition(ANSWER)[2].lstrip()
        added = tokenizer.added_tokens_decoder.items()
        found = [(len(token.content), number) for number, token in added if behind.startswith(token.content)]
        ends += [number for _, number in sorted(found)[-1:]]
    return ends


def _load(source: Path, folder: Path, fix: str, **options: Any) -> Any:
    """The tokenizer in ``folder``; an error names ``source`` and says how to ``fix`` it."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions too
        reason = " ".join(str(error).split())
        raise TrtstreamError(f"the tokenizer of {source} cannot be loaded ({reason}); {fix}") from error
    if not tokenizer.is_fast:
        raise TrtstreamError(f"the tokenizer of {source} has no fast version; {fix}")
    return tokenizer
