"""Malformed requests over both protocols: an answer or one line for each, and no harm to any other."""

from __future__ import annotations

import pytest

from benchmarks.fuzz.requests import fuzz_requests
from tests.deploy.server import Server

pytestmark = pytest.mark.triton


def test_every_request_gets_an_answer_or_one_line(server: Server) -> None:
    report = fuzz_requests(server.grpc_url, server.http_url, 200, 0)
    assert report.faults == []
    assert sum(count for outcome, count in report.outcomes.items() if "[invalid]" in outcome) > 40
    assert sum(count for outcome, count in report.outcomes.items() if "answered" in outcome) > 20
