"""How pytest-xdist's workers share the tests: a module's tests run on one of them, and so do all that start servers."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent


class ByModule(LoadScopeScheduling):
    """A module's tests share what they build. Servers answer in good time if no other test starts one meanwhile.

    This is ``--dist loadgroup`` without its marks, which pytest 9.2 and pytest-xdist 3.8 lose on the way.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid.partition("::")[0])


@cache
def group(module: str) -> str:
    """The group that a module's marks put it into, or the module itself."""
    marks = re.search(r"pytest\.mark\.(?:xdist_group\(\"(\w+)\"|triton)", (ROOT / module).read_text())
    return (marks[1] or "triton") if marks else module
