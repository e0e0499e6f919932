"""How pytest-xdist's workers share the tests: a module's tests run on one of them; those of servers on two."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent
LONG = ("slow", "smollm2", "builder", "process")  # marks


class ByModule(LoadScopeScheduling):
    """A module's tests share what they build. Servers are started on two workers, which wait for them most of the time.

    This is ``--dist loadgroup`` without its marks, which pytest 9.2 and pytest-xdist 3.8 lose on the way.
    """

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False  # keep the order of `longest_first`
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        module = module_of(nodeid)
        if not starts_servers(module):
            return module
        return "serving" if module.startswith("tests/deploy/serving/") else "servers"


def longest_first(items: list[pytest.Item]) -> None:
    """Sort so that the workers end at the same time: modules of servers, then those with other long tests, the rest."""
    long = {module_of(item.nodeid) for item in items if any(map(item.get_closest_marker, LONG))}
    items.sort(key=lambda item: (not starts_servers(module_of(item.nodeid)), module_of(item.nodeid) not in long))


def module_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@cache
def starts_servers(module: str) -> bool:
    return "pytest.mark.triton" in (ROOT / module).read_text()
