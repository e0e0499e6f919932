"""Which server a proxy sends a conversation to, with servers that say only which one they are."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.deploy.envoy import Envoy
from tests.deploy.haproxy import HAProxy
from tests.deploy.named_servers import named_server, places
from tests.deploy.proxy import Proxy

SESSIONS = [f"session {number}" for number in range(300)]


NO_HAPROXY = pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed")


@pytest.mark.parametrize("kind", [Envoy, pytest.param(HAProxy, marks=NO_HAPROXY)])
def test_a_session_stays_until_its_server_leaves(tmp_path: Path, kind: type[Proxy]) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(named_server(number)) for number in range(3)]
        proxy = stack.enter_context(kind(tmp_path, [server.ports for server in servers]))
        proxy.wait_for(3)
        before = places(proxy.url, SESSIONS)
        assert places(proxy.url, SESSIONS) == before
        spread = Counter(before.values())
        assert all(0.2 < spread[number] / len(SESSIONS) < 0.47 for number in range(3)), spread
        servers[1].is_ready = False
        proxy.wait_for(2)
        after = places(proxy.url, SESSIONS)
        moved = [one for one in SESSIONS if after[one] != before[one]]
        assert len(moved) < 1.2 * spread[1]  # those that must, and few others
        assert 1 not in after.values()
        servers[1].is_ready = True
        proxy.wait_for(3)
        assert places(proxy.url, SESSIONS) == before
