"""``trtstream doctor`` against what the commands themselves find."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

import pytest

from tests.command_line import run_in_process
from trtstream.doctor import EXTRAS, Check, _threads
from trtstream.targets import TARGETS


def checks() -> dict[str, Any]:
    done = run_in_process("doctor", "--json")
    assert done.returncode == 0
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_says_of_every_target_what_the_commands_would() -> None:
    found = checks()
    for name, target in TARGETS.items():
        assert found[f"run {name}"]["ok"] == (target.why_not() is None)
    assert found["build cpu"] == {"ok": True, "detail": "float32, bfloat16, int8, int4, kept"}
    assert found["build tensorrt-rtx"] == {"ok": True, "detail": "bfloat16, float16, float32, int8, int4"}
    assert os.access(found["serve"]["detail"], os.X_OK)


def test_the_table_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    done = run_in_process("doctor")
    assert done.returncode == 0
    for name, check in checks().items():
        assert re.search(rf"^ +{name} +{'yes' if check['ok'] else 'no'} ", done.stdout, re.MULTILINE), name


def test_what_is_missing_comes_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "/nowhere")
    for module in ("pytriton", "tensorrt_rtx", *(package for package, _ in EXTRAS.values())):
        monkeypatch.setitem(sys.modules, module, None)  # then Python cannot import it
    found = checks()
    assert found["build cpu"]["detail"].endswith("found no no-such-compiler; install g++ or set CXX")
    assert "pip install 'trtstream[tensorrt-rtx]'" in found["build tensorrt-rtx"]["detail"]
    assert "pip install 'trtstream[server]'" in found["serve"]["detail"]
    for extra, (_, user) in EXTRAS.items():
        assert f"pip install 'trtstream[{extra}]'" in found[user]["detail"]
    missing = ("build cpu", "build tensorrt-rtx", "serve", "trtllm-build", *(user for _, user in EXTRAS.values()))
    assert not any(found[name]["ok"] for name in missing)
    assert "pip install 'trtstream[server]'" in " ".join(run_in_process("doctor").stdout.split())


def test_more_threads_than_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert _threads(16, 2.5) == Check("threads", False, "16 for 2.5 CPUs; unset OMP_NUM_THREADS")
    assert _threads(2, 2.5).ok
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert _threads(16, 2.5) == Check("threads", True, "up to 2, as many as other processes leave CPUs")
