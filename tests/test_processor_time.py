"""A test that computes for long fails unless it is marked as slow; one that waits does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CONFTEST = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import tests.processor_time
from tests.processor_time import pytest_runtest_call
tests.processor_time.LIMIT = 0.5
"""

TESTS = """
import subprocess, sys, time
import pytest

COMPUTE = "import time\\nwhile time.process_time() < 0.8: pass"

def test_computes():
    end = time.process_time() + 0.8
    while time.process_time() < end: pass

@pytest.mark.slow
def test_computes_and_says_so():
    test_computes()

def test_has_others_compute():
    subprocess.run([sys.executable, "-c", COMPUTE])

def test_waits():
    time.sleep(0.8)
"""


@pytest.mark.slow
def test_computing_counts_and_waiting_does_not(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    options = ["-rA", "-p", "no:cacheprovider", "-o", "markers=slow", "-c", str(tmp_path / "pytest.ini")]
    (tmp_path / "pytest.ini").touch()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    summary = {
        line.split("::")[1].split()[0]: line.split()[0] for line in done.stdout.splitlines() if "ED test_" in line
    }
    assert summary == {
        "test_computes": "FAILED",
        "test_computes_and_says_so": "PASSED",
        "test_has_others_compute": "FAILED",
        "test_waits": "PASSED",
    }, done.stdout
    assert "seconds of processor time: make it lighter" in done.stdout
