"""Loads tokenizers of checkpoints and of engines, ready for texts of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtstream.errors import TrtstreamError, named_errors


def load_fast_tokenizer(folder: Path, name: str, fix: str, **options: Any) -> Any:
    """The tokenizer in ``folder``, without truncation and padding; transformers takes ``options``.

    Raises TrtstreamError for one that cannot be read or fails at a word; it has the tokenizer's ``name`` and the
    ``fix``.
    """
    from transformers import AutoTokenizer

    with named_errors(f"{name} cannot be loaded", fix):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
        if not tokenizer.is_fast:
            raise TrtstreamError(f"{name} has no fast version; {fix}")
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.decode(tokenizer.encode("Hello"))
    return tokenizer
