"""An engine's tokenizer: three files, read without transformers, whose import takes most of a second of a core."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from trtstream.errors import TrtstreamError, named_errors
from trtstream.tokenizer_json import check_token_ids, prepare

MAX_BYTES = 1 << 28
"""Of a file; the largest vocabularies take a sixth of it."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Its attributes have the names of transformers' tokenizers, which can take its place."""

    backend_tokenizer: tokenizers.Tokenizer
    chat_template: str | None
    special_tokens_map: Mapping[str, str]
    """Texts of tokens, by the names that templates use: ``bos_token`` and others."""
    added_tokens_decoder: dict[int, tokenizers.AddedToken] = field(init=False)
    """By id: tokens that are found in a text before it is split, the special ones among them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "added_tokens_decoder", self.backend_tokenizer.get_added_tokens_decoder())

    @property
    def unk_token_id(self) -> int | None:
        """The id of the token for what is unknown."""
        unknown = self.special_tokens_map.get("unk_token")
        return None if unknown is None else self.backend_tokenizer.token_to_id(unknown)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer saved in ``folder``, without truncation; None if the folder does not exist.

    Raises TrtstreamError in one line if it is damaged.
    """
    if not folder.is_dir():
        return None
    for path in folder.iterdir():
        if path.stat().st_size > MAX_BYTES:
            raise TrtstreamError(f"{path} has more than {MAX_BYTES:,} bytes; rebuild the engine")
    with named_errors(f"the tokenizer {folder} cannot be loaded", "rebuild the engine"):
        path = folder / "tokenizer.json"
        check_token_ids(path)
        backend = tokenizers.Tokenizer.from_file(str(path))
        prepare(backend)
        template = folder / "chat_template.jinja"
        return Tokenizer(
            backend,
            template.read_text(encoding="utf-8") if template.exists() else None,
            _special_tokens(json.loads((folder / "tokenizer_config.json").read_bytes())),
        )


def _special_tokens(config: Any) -> dict[str, str]:
    tokens = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):
            value = value["content"]
        if value is not None:
            if not isinstance(value, str):
                raise ValueError(f"tokenizer_config.json: {name} is not text")
            tokens[name] = value
    return tokens
