"""The tokenizer of a .gguf file: transformers reads the vocabulary; each key of the metadata is honoured or refused.

An unknown key is refused too: what it asks for would be left out without any error.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, decoders
from tokenizers.normalizers import NFC, Normalizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, PreTokenizer, Punctuation, Sequence, Split
from tokenizers.processors import TemplateProcessing

from trtstream.build import tokenizer
from trtstream.errors import TrtstreamError
from trtstream.typed_json import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TOKENIZER = (None, "none", "no_vocab")
MODELS = ("llama", "gpt2")  # sentencepiece's BPE, byte-level BPE

HONOURED = (
    "ggml.model",
    "ggml.pre",  # see SPLITS
    "ggml.tokens",
    "ggml.token_type",  # control and user-defined tokens are found whole in a text
    "ggml.scores",
    "ggml.merges",
    "ggml.bos_token_id",
    "ggml.eos_token_id",
    "ggml.eot_token_id",  # ends of a turn, as EOS
    "ggml.eom_token_id",
    "ggml.unknown_token_id",
    "ggml.padding_token_id",
    "ggml.add_bos_token",
    "ggml.add_space_prefix",
    "chat_template",
)
UNUSED = (
    "ggml.add_eos_token",  # an EOS never goes behind a prompt
    "ggml.token_type_count",  # of BERT's segments
    "ggml.seperator_token_id",
    "ggml.mask_token_id",
    "ggml.cls_token_id",
    "ggml.prefix_token_id",  # for filling in the middle of a text
    "ggml.suffix_token_id",
    "ggml.middle_token_id",
    "ggml.fim_pre_token_id",
    "ggml.fim_suf_token_id",
    "ggml.fim_mid_token_id",
    "ggml.fim_pad_token_id",
    "ggml.fim_rep_token_id",
    "ggml.fim_sep_token_id",
    "huggingface.json",  # the same once more
    "chat_templates",  # names of further templates, each under a key of its own
)
"""Keys without a say in the tokens of a prompt."""

REFUSED_UNLESS_EMPTY = (
    "ggml.add_sep_token",
    "ggml.remove_extra_whitespaces",
    "ggml.precompiled_charsmap",
    "ggml.normalizer.lowercase",
    "ggml.normalizer.strip_accents",
    "ggml.suppress_tokens",
    "rwkv.world",
)
"""Keys that may say false or be empty; what they ask for otherwise is not supported."""

NAMED_TEMPLATE = re.compile(r"chat_template\..+")

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace("{1,3}", "")  # each digit by itself
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN_WORDS = (  # a word ends where a capital letter follows a small one
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class ByteLevelSplit:
    """How text is split before byte-level BPE merges, and whether a piece that is a token as it is skips the merges.

    ``normalizer``: what comes before that, if anything. ``add_bos``: whether a prompt begins with BOS where the file
    does not say.
    """

    pre_tokenizer: PreTokenizer
    normalizer: Normalizer | None = None
    ignore_merges: bool = False
    add_bos: bool = False


BYTES = ByteLevel(add_prefix_space=False)
THREE_DIGITS = Split(Regex("[0-9][0-9][0-9]"), "isolated")
GPT2 = ByteLevelSplit(BYTES)
GPT_NEOX = ByteLevelSplit(BYTES, NFC())
LLAMA3 = ByteLevelSplit(
    Sequence([Split(Regex(LLAMA3_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
    ignore_merges=True,
    add_bos=True,
)
SPLITS = {
    "default": ByteLevelSplit(
        Sequence(
            [
                Split(Regex(r"[\p{P}$+<=>^~|]+"), "isolated"),
                Split(Regex(GPT2_WORDS), "isolated"),
                Digits(individual_digits=False),
                THREE_DIGITS,
                ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
    "gpt-2": GPT2,
    "mpt": GPT_NEOX,
    "olmo": GPT_NEOX,  # the tokenizer of GPT-NeoX and Pythia too
    "qwen2": ByteLevelSplit(
        Sequence([Split(Regex(QWEN2_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
        NFC(),
    ),
    "tekken": ByteLevelSplit(
        Sequence([Split(Regex(TEKKEN_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]),
        ignore_merges=True,
        add_bos=True,
    ),
    "smollm": ByteLevelSplit(Sequence([Digits(individual_digits=True), BYTES])),
    "falcon": ByteLevelSplit(
        Sequence([Punctuation("contiguous"), BYTES, Digits(individual_digits=False), THREE_DIGITS])
    ),
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "falcon3": LLAMA3,
}
"""By the name that GGUF metadata give (``tokenizer.ggml.pre``)."""


def load(path: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """The tokenizer that ``metadata`` (``tokenizer.*``, long lists as their length) describe; None if there is none.

    Raises TrtstreamError for a key that asks for something else than is supported: the tokens would differ from those
    of the training, without any error.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model in NO_TOKENIZER:
        return None
    for key, value in metadata.items():
        _check(path, key, value, metadata)
    if model not in MODELS:
        raise _refusal(path, "tokenizer.ggml.model", model, f"supported are {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory() as empty:
        # A link in an empty folder, so that no tokenizer file next to the original is mixed in.
        link = Path(empty) / "model.gguf"
        link.symlink_to(path.resolve())
        loaded = tokenizer.load(path, link.parent, "use the Hugging Face checkpoint", gguf_file=link.name)
    add_bos = _byte_level(path, loaded, metadata) if model == "gpt2" else _sentencepiece(loaded, metadata)
    if metadata.get("tokenizer.ggml.add_bos_token", add_bos):
        _add_bos(path, loaded)
    return loaded


def _byte_level(path: Path, loaded: Any, metadata: dict[str, Any]) -> bool:
    """Set how text is split; returns whether BOS is the default."""
    name = metadata.get("tokenizer.ggml.pre")
    if name not in SPLITS:
        if name is None:
            raise TrtstreamError(
                f"{path} lacks tokenizer.ggml.pre, which says how text is split; convert it again, or use the Hugging "
                "Face checkpoint"
            )
        raise _refusal(path, "tokenizer.ggml.pre", name, f"supported are {', '.join(SPLITS)}")
    split = SPLITS[name]
    loaded.backend_tokenizer.normalizer = split.normalizer
    loaded.backend_tokenizer.pre_tokenizer = split.pre_tokenizer
    loaded.backend_tokenizer.model.ignore_merges = split.ignore_merges
    return split.add_bos


def _sentencepiece(loaded: Any, metadata: dict[str, Any]) -> bool:
    """Set whether a text gets a space in front; returns whether BOS is the default."""
    if not metadata.get("tokenizer.ggml.add_space_prefix", True):
        loaded.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme="never", split=False)
        # Decoding strips the space that encoding adds.
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        loaded.backend_tokenizer.decoder = decoders.Sequence(steps)
    return True


def _add_bos(path: Path, loaded: Any) -> None:
    if loaded.bos_token is None:
        raise TrtstreamError(
            f"{path}: prompts begin with BOS, but tokenizer.ggml.bos_token_id is not set; convert again"
        )
    bos = str(loaded.bos_token)
    loaded.backend_tokenizer.post_processor = TemplateProcessing(
        f"{bos} $A", f"{bos} $A {bos} $B", [(bos, loaded.bos_token_id)]
    )


def _check(path: Path, key: str, value: Any, metadata: dict[str, Any]) -> None:
    """Refuse a key that is not known, or whose value is not supported."""
    name = key.removeprefix("tokenizer.")
    if name in REFUSED_UNLESS_EMPTY:
        if value:
            raise _refusal(path, key, value, "which is not supported")
    elif name not in HONOURED and name not in UNUSED and not NAMED_TEMPLATE.fullmatch(name):
        raise _refusal(path, key, value, "a key that is not known")
    length = metadata.get("tokenizer.ggml.tokens", 0)
    if not isinstance(length, int):
        raise _refusal(path, "tokenizer.ggml.tokens", length, "which is not a list of tokens")
    if name in HONOURED and name.endswith("_token_id") and not (isinstance(value, int) and 0 <= value < length):
        raise _refusal(path, key, value, f"and the vocabulary has {length} tokens")


def _refusal(path: Path, key: str, value: Any, what: str) -> TrtstreamError:
    return TrtstreamError(f"{path}: {key[:100]} is {shown(value)}, {what}; use the Hugging Face checkpoint")
