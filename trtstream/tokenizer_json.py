"""What holds for a tokenizer.json of a checkpoint and of an engine: ids that fit into memory, texts of any length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

MAX_TOKEN_ID = 1 << 24
"""The library takes memory for each id up to the largest; the largest vocabularies have a sixtieth of this."""


def check_token_ids(path: Path) -> None:
    """Raise ValueError for an id above `MAX_TOKEN_ID`; what else is wrong with the file, the library says."""
    largest = max(_token_ids(json.loads(path.read_bytes())), default=0)
    if largest > MAX_TOKEN_ID:
        raise ValueError(f"tokenizer.json has the token id {largest}, beyond {MAX_TOKEN_ID}")


def prepare(tokenizer: Tokenizer) -> None:
    """Neither cut nor fill texts from here on. The library raises its own exceptions for one that fails at a word."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.decode(tokenizer.encode("Hello").ids)


def _token_ids(values: Any) -> Iterator[int]:
    vocabulary, added = values["model"].get("vocab"), values.get("added_tokens")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return (number for number in ids if isinstance(number, int))
