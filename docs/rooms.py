"""The picture of the rooms in structures.md, drawn from what their modules import.

python docs/rooms.py draws it again.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "structures.md"
FOLDERS = {
    "commands": "trtstream/*.py",
    "evaluation": "trtstream/evaluation/**/*.py",
    "build": "build/**/*.py",
    "deploy": "deploy/**/*.py",
    "model_repo": "model_repo/**/*.py",
    "runtime": "trtstream/runtime/**/*.py",
    "sessions": "trtstream/sessions/**/*.py",
    "plugins": "plugins/**/*.py",
}
COMMANDS = ("cli", "doctor", "quickstart")  # of trtstream/*.py; the other modules there are for everybody
MARKERS = ("<!-- made by docs/rooms.py -->\n", "<!-- end -->\n")
NAME = re.compile(r"trtstream\.(\w+)[\w.]*(:\w+)?")


def imported(file: Path) -> set[str]:
    """The rooms that a module imports from, inside functions too, and by name as ``trtstream.module:function``."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
            names.add(node.value)
    return {match[1] for name in names if (match := NAME.fullmatch(name)) and match[1] in FOLDERS}


def picture() -> str:
    """A mermaid flowchart: an arrow from each room to those that it imports."""
    lines = []
    for room, pattern in FOLDERS.items():
        files = [file for file in ROOT.glob(pattern) if room != "commands" or file.stem in COMMANDS]
        others = sorted(set().union(*map(imported, files)) - {room}, key=list(FOLDERS).index)
        lines += [f"    {room} --> {' & '.join(others)}\n"] if others else []
    return "```mermaid\nflowchart TD\n" + "".join(lines) + "```\n"


def drawn(page: str) -> str:
    """The page with the picture as it is now."""
    begin, end = MARKERS
    before, _, rest = page.partition(begin)
    return before + begin + picture() + end + rest.partition(end)[2]


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
