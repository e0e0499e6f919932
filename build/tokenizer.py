"""Tokenizers of checkpoints, chat template included, and the tokens at which their answers end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtstream.errors import TrtstreamError, named_errors
from trtstream.rendering import ANSWER, QUESTION, LimitReached, behind_answers
from trtstream.tokenizer_json import check_token_ids, prepare
from trtstream.typed_json import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
SAVED = (
    *FILES,
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""What a tokenizer consists of, its chat template included."""


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
    return load(source, source, fix)


def turn_ends(tokenizer: PreTrainedTokenizerBase, source: Path) -> list[int]:
    """The ids that end an answer: the tokenizer's EOS, and the token that the chat template puts behind answers.

    Raises TrtstreamError, which names ``source``, for a template that does not end.
    """
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        asked = [("user", QUESTION)]
        try:
            behind = (behind_answers(tokenizer, [*asked, ("assistant", ANSWER)], asked) or "").lstrip()
        except LimitReached as error:
            raise TrtstreamError(f"the chat template of {source} is stopped: {error}; fix it") from None
        except Exception:  # a template may raise anything; serving it says more
            return ends
        added = tokenizer.added_tokens_decoder.items()
        found = [(len(token.content), number) for number, token in added if behind.startswith(token.content)]
        ends += [number for _, number in sorted(found)[-1:]]
    return ends


def load(source: Path, folder: Path, fix: str, gguf_file: str | None = None) -> Any:
    """The tokenizer in ``folder``, or in this file there, without truncation and padding.

    Raises TrtstreamError, which names ``source`` and the ``fix``, for one that cannot be read or fails at a word.
    """
    name = f"the tokenizer of {source}"
    with named_errors(f"{name} cannot be loaded", fix):
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        path = folder / "tokenizer.json"
        if path.is_file():
            check_token_ids(path)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        if gguf_file is None:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        else:  # AutoTokenizer would read the model's config too, in seconds, and refuse architectures
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=gguf_file, **options)
        if not tokenizer.is_fast:
            raise TrtstreamError(f"{name} has no fast version; {fix}")
        prepare(tokenizer.backend_tokenizer)
    tokenizer.chat_template = _default_template(tokenizer.chat_template, source)
    return tokenizer


def _default_template(templates: Any, source: Path) -> str | None:
    """The chat template that is used where a checkpoint has several by name: the one named ``default``."""
    if isinstance(templates, dict) and "default" not in templates:
        raise TrtstreamError(
            f"the tokenizer of {source} has the chat templates {shown(sorted(templates))} and no default; name one "
            "of them 'default' in its tokenizer_config.json, or keep it alone, as chat_template.jinja"
        )
    template = templates["default"] if isinstance(templates, dict) else templates
    if template is not None and not isinstance(template, str):
        raise TrtstreamError(f"the chat template of {source} is {shown(template)}; it must be a text")
    return template
