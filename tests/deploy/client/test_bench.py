from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import run_in_process, run_trtstream
from trtstream.deploy.client.bench import Level
from trtstream.deploy.client.bench_calls import Load
from trtstream.deploy.client.bench_plot import save_plot
from trtstream.deploy.client.metrics import TurnTiming, distribution, summarize

pytestmark = pytest.mark.triton

SMALL = ("--requests", 4, "--input-tokens", 8, "--output-tokens", 5)


def test_timing_of_one_turn() -> None:
    timing = TurnTiming(turn=1, sent=10.0, first_token=10.5, last_token=12.5, output_tokens=5)
    assert timing.time_to_first_token == 0.5
    assert timing.request_latency == 2.5
    assert timing.inter_token_latency == (2.5 - 0.5) / 4


def test_one_token_has_no_gap() -> None:
    assert TurnTiming(1, sent=0.0, first_token=1.0, last_token=1.0, output_tokens=1).inter_token_latency is None


def test_distribution_interpolates() -> None:
    assert distribution([]) is None
    found = distribution([second / 1000 for second in range(101)])
    assert [found.mean, found.p50, found.p90, found.p99] == pytest.approx([50, 50, 90, 99])
    assert distribution([0.001, 0.002]).p90 == pytest.approx(1.9)


def test_summary() -> None:
    timings = [
        TurnTiming(1, sent=100.0, first_token=101.0, last_token=103.0, output_tokens=5),
        TurnTiming(2, sent=103.0, first_token=103.5, last_token=104.5, output_tokens=5),
        TurnTiming(1, sent=100.0, first_token=102.0, last_token=105.0, output_tokens=4),
        TurnTiming(2, sent=105.0, error="the server is busy"),
    ]
    summary = summarize(2, timings)
    assert (summary.concurrency, summary.requests, summary.errors) == (2, 3, 1)
    assert summary.duration_s == 5.0
    assert summary.request_throughput == 3 / 5
    assert summary.output_token_throughput == 14 / 5
    assert summary.time_to_first_token_ms.mean == pytest.approx((1000 + 500 + 2000) / 3)
    assert summary.inter_token_latency_ms.p50 == pytest.approx(500)
    assert summary.request_latency_ms.p50 == pytest.approx(3000)
    assert [by_turn.p50 for by_turn in summary.time_to_first_token_ms_by_turn] == pytest.approx([1500, 500])


def test_summary_of_failures_alone(tmp_path) -> None:
    summary = summarize(1, [TurnTiming(1, sent=0.0, error="gone")])
    assert (summary.requests, summary.errors, summary.output_token_throughput) == (0, 1, 0.0)
    assert summary.time_to_first_token_ms is None
    save_plot(tmp_path / "empty.png", [summary], "nothing to see")
    assert (tmp_path / "empty.png").is_file()


def test_bench_writes_figures(server, tmp_path) -> None:
    json_file, plot_file = tmp_path / "bench.json", tmp_path / "bench.png"
    options = ("--concurrency", "1,2", "--turns", 2, *SMALL, "--json", json_file, "--plot", plot_file)
    result = run_trtstream("bench", "--url", server.grpc_url, *options)
    assert result.returncode == 0, result.stderr
    assert "output tokens/s" in result.stdout
    assert "concurrency 2: 8 of 8" in result.stderr
    report = json.loads(json_file.read_text())
    assert report["interrupted"] is False
    assert report["errors"] == {}
    assert [level["concurrency"] for level in report["levels"]] == [1, 2]
    for level in report["levels"]:
        assert (level["requests"], level["errors"]) == (8, 0)
        # Per turn: from sent to the last token is the first token's time and four gaps.
        mean = {name: level[name]["mean"] for name in level if name.endswith("_ms")}
        assert mean["request_latency_ms"] == pytest.approx(
            mean["time_to_first_token_ms"] + 4 * mean["inter_token_latency_ms"]
        )
        assert len(level["time_to_first_token_ms_by_turn"]) == 2
        assert level["output_token_throughput"] == pytest.approx(8 * 5 / level["duration_s"])
    from matplotlib.image import imread

    assert imread(plot_file).shape[:2] == (480, 1920)


@pytest.mark.parametrize(("requests", "levels"), [(1, [1]), (5, [1, 4])])
def test_the_levels_are_those_that_the_requests_keep_busy(
    server, tmp_path: Path, requests: int, levels: list[int]
) -> None:
    options = ("--requests", requests, "--input-tokens", 2, "--output-tokens", 2, "--json", tmp_path / "bench.json")
    result = run_in_process("bench", "--url", server.grpc_url, *options)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [level["concurrency"] for level in report["levels"]] == levels


def test_failed_requests_are_counted(server) -> None:
    load = Load(server.grpc_url, "trtstream", 1 << 30, requests=3, input_tokens=4, output_tokens=2, turns=2)
    level = Level(load, concurrency=2, tls_ca=None)
    level.run(lambda done, total: None)
    assert len(level.timings) == 3  # a session ends with its first error
    assert all("input_ids" in timing.error for timing in level.timings)


def test_prompts_are_random_but_always_the_same() -> None:
    load = Load("", "", vocab_size=100, requests=1, input_tokens=50, output_tokens=1, turns=1)
    assert load.prompt(0, 1) == load.prompt(0, 1)
    assert load.prompt(0, 1) != load.prompt(0, 2) != load.prompt(1, 1)
    assert set(load.prompt(0, 1)) <= set(range(100))


def test_an_interrupt_prints_the_figures_so_far(server, tmp_path) -> None:
    json_file = tmp_path / "bench.json"
    options = ["--concurrency", "1", "--requests", "1000", "--output-tokens", "20", "--json", str(json_file)]
    command = [sys.executable, "-m", "trtstream", "bench", "--url", server.grpc_url, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as bench:
        assert "of 1000" in bench.stderr.readline()
        bench.send_signal(signal.SIGINT)
        stdout, stderr = bench.communicate(timeout=60)
    assert bench.returncode == 1
    assert "output tokens/s" in stdout
    assert "interrupted" in stderr
    report = json.loads(json_file.read_text())
    assert report["interrupted"] is True
    assert 100 <= report["levels"][0]["requests"] < 1000


def test_a_server_that_dies_fails_the_bench(start) -> None:
    server = start()
    options = ["--concurrency", "2", "--requests", "500", "--output-tokens", "20"]
    command = [sys.executable, "-m", "trtstream", "bench", "--url", server.grpc_url, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as bench:
        assert "of 500" in bench.stderr.readline()
        server.process.kill()
        stdout, stderr = bench.communicate(timeout=60)
    assert bench.returncode == 1
    assert "output tokens/s" in stdout
    assert "failed: no Triton gRPC service answers at" in stderr


def test_nothing_listens() -> None:
    result = run_in_process("bench", "--url", "127.0.0.1:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no Triton gRPC service answers at 127.0.0.1:1" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--concurrency", "0"), "'0' is not a list of positive numbers"),
        (("--concurrency", "1,x"), "'1,x' is not a list of positive numbers"),
        (("--requests", 2, "--concurrency", "4"), "--requests 2 cannot keep 4 clients busy"),
        (("--json", "missing/bench.json"), "missing does not exist"),
    ],
)
def test_bad_usage(options: tuple[object, ...], message: str) -> None:
    result = run_in_process("bench", *options)
    assert result.returncode == 2
    assert message in result.stderr
