"""The documentation's pages: their commands, and the conversation that README.md shows."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONVERSATION = re.compile(r"^\$ trtstream chat\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and code of a page's blocks, without those that call make or pip."""
    code_blocks = FENCE.findall((ROOT / page).read_text())
    return [(language, code) for language, code in code_blocks if "make " not in code and "pip " not in code]


def shown_conversation() -> tuple[list[str], list[str]]:
    """The questions and the answers, of one line each."""
    (conversation,) = CONVERSATION.findall((ROOT / "README.md").read_text())
    lines = conversation.splitlines()
    return [line.removeprefix("> ") for line in lines[::2]], lines[1::2]
