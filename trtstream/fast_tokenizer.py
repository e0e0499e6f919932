"""Loads tokenizers of checkpoints and of engines, ready for texts of any length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtstream.errors import TrtstreamError, named_errors

MAX_TOKEN_ID = 1 << 24
"""The library takes memory for each id up to the largest; the largest vocabularies have a sixtieth of this."""
GENERIC = "TokenizersBackend"
"""transformers' name for it in a tokenizer_config.json."""


def load_fast_tokenizer(folder: Path, name: str, fix: str, **options: Any) -> Any:
    """The tokenizer in ``folder``, without truncation and padding; transformers takes ``options``.

    Raises TrtstreamError for one that cannot be read or fails at a word; it has the tokenizer's ``name`` and the
    ``fix``.
    """
    with named_errors(f"{name} cannot be loaded", fix):
        path = folder / "tokenizer.json"
        if path.is_file():
            largest = max(_token_ids(json.loads(path.read_bytes())), default=0)
            if largest > MAX_TOKEN_ID:
                raise ValueError(f"tokenizer.json has the token id {largest}, beyond {MAX_TOKEN_ID}")
        reader = _tokenizer_class(folder)
        tokenizer = reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
        if not tokenizer.is_fast:
            raise TrtstreamError(f"{name} has no fast version; {fix}")
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.decode(tokenizer.encode("Hello"))
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:
    """The class that reads any tokenizer.json where the folder names it, as an engine's mostly does.

    Else what looks for a class, which imports half a second of models. A config.json may overrule the name.
    """
    path = folder / "tokenizer_config.json"
    if path.is_file() and (folder / "tokenizer.json").is_file() and not (folder / "config.json").exists():
        config = json.loads(path.read_bytes())
        if isinstance(config, dict) and config.get("tokenizer_class") == GENERIC and "auto_map" not in config:
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _token_ids(values: Any) -> Iterator[int]:
    """The ids that a tokenizer.json names; what else is wrong with it, the library says."""
    vocabulary, added = values["model"].get("vocab"), values.get("added_tokens")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return (number for number in ids if isinstance(number, int))
