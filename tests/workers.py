"""How pytest-xdist's workers share the tests: a module's tests run on one of them, and so do all that start servers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent


class ByModule(LoadScopeScheduling):
    """A module's tests share what they build. Servers answer in good time if no other test starts one meanwhile.

    This is ``--dist loadgroup`` without its marks, which pytest 9.2 and pytest-xdist 3.8 lose on the way.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "servers" if starts_servers(module) else module


@cache
def starts_servers(module: str) -> bool:
    return "pytest.mark.triton" in (ROOT / module).read_text()
