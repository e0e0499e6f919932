"""``trtstream bench`` over OpenAI's protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import run_in_process
from tests.deploy.gateway.conftest import connect
from tests.deploy.server import Server
from trtstream.deploy.client.bench import Level
from trtstream.deploy.client.bench_calls import Load, new_caller
from trtstream.sessions.turn_log import TurnLog

pytestmark = pytest.mark.triton


def test_figures_of_conversations(server: Server, store: str, tmp_path: Path) -> None:
    url, json_file = f"http://{server.openai_url}", tmp_path / "bench.json"
    options = ("--concurrency", "1,2", "--requests", 3, "--turns", 2, "--input-tokens", 2, "--output-tokens", 5)
    kept = len(TurnLog(store).summaries())
    result = run_in_process("bench", "--url", url, *options, "--json", json_file)
    assert result.returncode == 0, result.stderr
    report = json.loads(json_file.read_text())
    assert (report["errors"], report["settings"]["url"]) == ({}, url)
    assert report["settings"]["model_parameters"]["max_attention_window"] == 64
    for level, concurrency in zip(report["levels"], (1, 2), strict=True):
        assert (level["concurrency"], level["requests"], level["errors"]) == (concurrency, 6, 0)
        assert level["request_throughput"] == pytest.approx(6 / level["duration_s"])
        assert len(level["time_to_first_token_ms_by_turn"]) == 2
        mean = {name: level[name]["mean"] for name in level if name.endswith("_ms")}
        assert 0 < mean["time_to_first_token_ms"] <= mean["request_latency_ms"]
    assert len(TurnLog(store).summaries()) == kept  # its conversations are gone


def test_an_answer_is_what_the_gateway_says_of_it(server: Server) -> None:
    load = Load(f"http://{server.openai_url}/v1", "trtstream", None, 1, input_tokens=3, output_tokens=7, turns=2)
    with connect(server) as client:
        response = client.responses.create(model="trtstream", input=load.text(0, 1), max_output_tokens=7, store=False)
    assert len(load.text(0, 1).split()) == 3
    assert load.text(0, 1) == load.text(0, 1) != load.text(0, 2) != load.text(1, 1)
    with new_caller(load, None) as caller, caller.session() as ask:
        answer, _ = ask(0, 1), ask(0, 2)
    assert response.usage is not None
    assert answer.output_tokens == response.usage.output_tokens
    assert answer.first_token <= answer.last_token


def test_failed_responses_are_counted(server: Server) -> None:
    load = Load(f"http://{server.openai_url}", "another", None, requests=3, input_tokens=4, output_tokens=2, turns=2)
    level = Level(load, concurrency=2, tls_ca=None)
    level.run(lambda done, total: None)
    assert len(level.timings) == 3
    assert all("another" in timing.error for timing in level.timings if timing.error)
    assert all(timing.error for timing in level.timings)


@pytest.mark.parametrize("options", [(), ("--model-name", "another")])
def test_no_gateway_or_no_such_model(server: Server, options: tuple[str, ...]) -> None:
    url = f"http://{server.openai_url}" if options else "http://127.0.0.1:1"
    result = run_in_process("bench", "--url", url, *options)
    assert (result.returncode, result.stdout) == (1, "")
    assert ("another" if options else "no gateway answers at http://127.0.0.1:1: ") in result.stderr
    assert "Traceback" not in result.stderr
