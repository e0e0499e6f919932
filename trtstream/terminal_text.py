"""Texts of strangers on a terminal."""

from __future__ import annotations

import sys

CONTROL_CHARACTERS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def for_stdout(text: str) -> str:
    """The text without control characters if stdout is a terminal, where they could write escape sequences."""
    return text.translate(CONTROL_CHARACTERS) if sys.stdout.isatty() else text
