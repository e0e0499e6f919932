"""A session with a borrowed GPU, rehearsed on the CPU: short calls, carried results, crashes, a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as script
from benchmarks.gpu import measurements, parts, worker
from benchmarks.gpu.bench import FULL, TINY, Bench, Case
from benchmarks.gpu.results import Results, Row, rows_of

ROOT = Path(__file__).parent.parent.parent
BENCH = Bench(torch.device("cpu"), TINY)
TITLE = "CPU, tiny sizes"
FILE = "gpu-cpu-tiny-sizes.json"
OF_CUDA = [name for name, part in parts.PARTS.items() if part.module != "tensorrt"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny", *arguments])
    return script.main()


def test_the_plan_of_the_full_sizes_fits_into_calls_of_eight_minutes(tmp_path: Path) -> None:
    calls = parts.plan(OF_CUDA, Bench(torch.device("cpu"), FULL), Results(tmp_path / "none.json", None))
    assert all(each.seconds <= parts.CALL_SECONDS < 480 for each in calls)
    assert [name for each in calls for name in each.parts] == OF_CUDA, "each part once, in the order of their worth"
    assert calls[0].parts[:4] == ["environment", "bandwidth", "correctness", "decode"]
    assert next(parts.cases("decode", Bench(torch.device("cpu"), FULL))).labels == {
        "model": "Llama-2-7B",
        "window": 1024,
        "batch": 1,
    }


def test_a_part_that_is_too_long_for_a_call_goes_on_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "CALL_SECONDS", parts.COMPILING_SECONDS + parts.STARTING_SECONDS + 7)
    calls = parts.plan(["attention"], BENCH, Results(tmp_path / "none.json", None))
    assert [(each.parts, each.cases) for each in calls] == [(["attention"], 3), (["attention"], 3), (["attention"], 2)]


def carry(out: Path, carried: Path) -> None:
    carried.mkdir(exist_ok=True)
    shutil.copyfile(out / FILE, carried / FILE)


@pytest.mark.slow
def test_a_session_runs_to_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each call nothing is kept but its $OUT, and the next one is given what the plan still wants."""
    carried = tmp_path / "carried"
    monkeypatch.setattr(script, "RESULTS", carried)
    monkeypatch.setattr(parts, "CALL_SECONDS", 200)
    measured: dict[str, str] = {}
    for number in range(10):
        out = tmp_path / f"out-{number}"
        monkeypatch.setenv("OUT", str(out))
        calls = parts.plan(OF_CUDA, BENCH, Results(carried / FILE, TITLE))
        if not calls:
            break
        assert call(monkeypatch, "--parts", ",".join(calls[0].parts)) == 0
        found = {name: json.dumps(part) for name, part in json.loads((out / FILE).read_text())["parts"].items()}
        assert found.items() >= measured.items(), "what an earlier call measured stays as it was"
        measured = found
        carry(out, carried)
    assert number > 1
    assert list(measured) == OF_CUDA
    printed = capsys.readouterr().out
    assert all(printed.count(f"## {name} (complete, ") == 1 for name in OF_CUDA)
    assert call(monkeypatch, "--plan", "--parts", ",".join(OF_CUDA)) == 0
    assert capsys.readouterr().out == "nothing is missing\n"


@pytest.mark.slow
@pytest.mark.process
def test_a_kill_loses_the_measurement_that_it_falls_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--json", str(path)]
    process = subprocess.Popen([*command, "--parts", "attention"], cwd=ROOT, start_new_session=True)
    try:
        while not path.exists() or len(Results(path, TITLE).rows("attention")) < 3:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = Results(path, TITLE).part("attention")
    lost = [before["measuring"]] if "measuring" in before else []
    all_labels = [case.labels for case in parts.cases("attention", BENCH)]
    assert [case["labels"] for case in before["cases"]] + lost == all_labels[: len(before["cases"]) + len(lost)]

    assert call(monkeypatch, "--json", str(path), "--parts", "attention") == 0
    after = Results(path, TITLE).part("attention")
    assert after["cases"][: len(before["cases"])] == before["cases"]
    assert [case["labels"] for case in after["cases"]] == all_labels


CASES_THAT_END_PROCESSES = """
import os, sys, threading
from benchmarks.gpu import measurements, parts, worker
from benchmarks.gpu.bench import Case

def poisons():
    worker.works = lambda device: False
    raise RuntimeError("an illegal memory access\\nand more lines")

def bandwidth(bench):
    yield Case({"n": 1}, lambda: [{"gb": 1.0}])
    yield Case({"n": 2}, os.abort)
    yield Case({"n": 3}, lambda: [{"gb": 3.0}])
    yield Case({"n": 4}, poisons)
    yield Case({"n": 5}, lambda: threading.Event().wait())
    yield Case({"n": 6}, lambda: [{"gb": 6.0}])

measurements.bandwidth = bandwidth
parts.PARTS["bandwidth"] = parts.Part("measurements", -19.5)  # hangs after 1.5 s
sys.exit(worker.main(*sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.process
def test_crashes_hangs_and_a_poisoned_gpu_cost_a_row_each(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", TITLE)
    results.begin("bandwidth", "today")
    (tmp_path / "worker.py").write_text(CASES_THAT_END_PROCESSES)
    script.measure_apart("bandwidth", BENCH, results, time.monotonic() + 1000, [str(tmp_path / "worker.py")])
    assert results.part("bandwidth")["state"] == "complete"
    assert results.rows("bandwidth") == [
        {"n": 1, "gb": 1.0},
        {"n": 2, "error": "its process ended with status -6"},
        {"n": 3, "gb": 3.0},
        {"n": 4, "error": "RuntimeError: an illegal memory access"},
        {"n": 5, "error": "its process ended with status 1"},
        {"n": 6, "gb": 6.0},
    ]
    assert results.failures("bandwidth") == 3


def test_a_process_that_measures_nothing_ends_the_part(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", TITLE)
    results.begin("bandwidth", "today")
    script.measure_apart("bandwidth", BENCH, results, time.monotonic() + 1000, ["-c", "import os; os.abort()"])
    assert results.part("bandwidth").items() >= {"state": "failed", "error": "its process ended with status -6"}.items()


def test_what_failed_or_is_of_other_sources_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def rows(number: int) -> Iterator[Row]:
        measured.append(number)
        yield {"gb": 1.0}
        if number == 2:
            raise ArithmeticError("the second row")

    def three(bench: Bench) -> Iterator[Case]:
        return (Case({"n": number}, lambda number=number: rows(number)) for number in (1, 2, 3))  # type: ignore[misc]

    monkeypatch.setattr(measurements, "bandwidth", three)
    results = Results(tmp_path / "results.json", TITLE)

    def again(sources: str) -> list[int]:
        measured.clear()
        results.begin("bandwidth", sources)
        assert worker.measure("bandwidth", BENCH, results, 1000)
        return list(measured)

    assert again("today") == [1, 2, 3]
    assert results.rows("bandwidth")[1:3] == [{"n": 2, "gb": 1.0}, {"n": 2, "error": "ArithmeticError: the second row"}]
    assert again("today") == [2]
    assert again("tomorrow") == [1, 2, 3]


def test_no_measurement_begins_when_time_is_over(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", TITLE)
    results.begin("attention", "today")
    assert not worker.measure("attention", BENCH, results, 0)
    assert results.part("attention")["cases"] == []


def test_results_of_another_device_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"device": "NVIDIA Imaginary", "parts": {}}')
    with pytest.raises(SystemExit, match="is of NVIDIA Imaginary and this is CPU, tiny sizes; choose another --json"):
        call(monkeypatch, "--json", str(path))


def test_results_go_to_out_and_go_on_from_the_carried_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried, out = tmp_path / "carried", tmp_path / "out"
    monkeypatch.setattr(script, "RESULTS", carried)
    monkeypatch.delenv("OUT", raising=False)
    assert script.results_file(TITLE) == carried / FILE
    monkeypatch.setenv("OUT", str(out))
    assert script.results_file(TITLE) == out / FILE
    assert not (out / FILE).exists()
    carried.mkdir()
    (carried / FILE).write_text("carried")
    assert script.results_file(TITLE).read_text() == "carried"
    (out / FILE).write_text("newer")
    assert script.results_file(TITLE).read_text() == "newer"
    assert rows_of({}) == []
