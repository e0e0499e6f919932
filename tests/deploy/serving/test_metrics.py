"""The metrics at Triton's endpoint, and in the documentation."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.deploy.server import Server
from tests.runtime.clients import wait_until
from trtstream.deploy.client.client import Client
from trtstream.errors import TrtstreamError
from trtstream.runtime.metrics import METRICS, PREFIX

ROOT = Path(__file__).parents[3]


def test_the_documentation_has_every_metric() -> None:
    page = (ROOT / "docs" / "service.md").read_text()
    for name, metric in METRICS.items():
        label = f" `{metric.label}`" if metric.label else ""
        values = f" ({', '.join(f'`{value}`' for value in metric.values)})" if metric.values else ""
        row = f"| `{PREFIX}{name}` | {metric.kind} |{label}{values} | {metric.help} |"
        assert row in page, row
    assert len(re.findall(rf"^\| `{PREFIX}", page, re.MULTILINE)) == len(METRICS)


def samples(server: Server) -> dict[tuple[str, str], float]:
    """By name and label, besides the model's."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as answer:
        lines = re.findall(rf"^{PREFIX}(\w+){{(.*)}} (\S+)$", answer.read().decode(), re.MULTILINE)
    found: dict[tuple[str, str], float] = {}
    for name, labels, value in lines:
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert pairs.pop("model") == "trtstream"
        pairs.pop("le", None)
        found[name, "".join(pairs.values())] = float(value)
    return found


@pytest.mark.triton
def test_triton_publishes_what_clients_have_seen(server: Server) -> None:
    before = samples(server)
    for name, metric in METRICS.items():
        series = f"{name}_count" if metric.kind == "histogram" else name
        assert {label for found, label in before if found == series} >= set(metric.values or [""][bool(metric.label) :])
    with Client(server.grpc_url) as client:
        answer = client.answer(text_input="Hello", max_tokens=5, ignore_eos=True)
        with pytest.raises(TrtstreamError, match="max_tokens"):
            client.answer(text_input="Hello", max_tokens=0)
    body = json.dumps({"text_input": "Hello", "unheard_of": 1}).encode()  # not read as far as the scheduler
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(f"http://{server.http_url}/v2/models/trtstream/generate", body)
    expected = {
        ("turns_total", "length"): 1,
        ("input_tokens_total", ""): answer.num_input_tokens,
        ("output_tokens_total", ""): 5,
        ("time_to_first_token_seconds_count", "new"): 1,
        ("inter_token_seconds_count", ""): 1,
        ("refusals_total", "invalid"): 2,
    }

    def is_published() -> bool:
        now = samples(server)
        return all(now.get(key, 0.0) - before.get(key, 0.0) >= more for key, more in expected.items())

    wait_until(is_published)
