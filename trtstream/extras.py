"""Packages that only some commands need, each brought by one of the extras in pyproject.toml."""

from __future__ import annotations

import importlib

from trtstream.errors import TrtstreamError


def require_extra(module: str, extra: str, user: str) -> None:
    """Raise TrtstreamError if ``module`` cannot be imported: ``user`` needs it, and the extra ``extra`` brings it."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise TrtstreamError(f"{user} needs {package}: pip install 'trtstream[{extra}]' ({error})") from error
