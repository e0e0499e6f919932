"""schemathesis asks for what /openapi.json describes, and for what it does not: every answer is described."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.server import Server
from trtstream.deploy.gateway.operations import OPERATIONS

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11"),
]

COUNT = re.compile(r'request_seconds_count{method="(\w+)",route="([^"]+)",status="(\w+)"}')
NOT_REACHED = {"GET /v1/conversations/{id}/items/{item}", "POST /v1/responses/{id}/cancel"}
"""No other answer has an item's id in a path, and few responses are made in the background."""
RULES = "positive_data_acceptance"
"""A check that a schema says all there is: it cannot say which parameters belong together, or how many tokens fit."""


def test_schemathesis(start: Callable[..., Server], tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/sessions.db"
    server = start("--openai-port", "0", "--session-store", store, "--max-tokens-limit", "8")
    url = f"http://{server.openai_url}"
    code = "from schemathesis.cli import schemathesis; schemathesis()"
    options = ["--seed", "1", "--max-examples", "8", "--no-shrink", "--continue-on-failure", "--exclude-checks", RULES]
    command = [sys.executable, "-c", code, "run", f"{url}/openapi.json", *options, "--generation-database", "none"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        counts = {(f"{method} {route}", status) for method, route, status in COUNT.findall(response.read().decode())}
    done = {route.replace(":path", "") for route, status in counts if status == "200"}
    assert OPERATIONS.keys() - done <= NOT_REACHED
    assert not {(route, status) for route, status in counts if status == "left" or status >= "500"}
