"""The table of targets: light to import, with functions that exist, and the only place that asks which target it is."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from trtstream.targets import TARGETS, Target, best_target

ROOT = Path(__file__).parents[2]
BRANCH = re.compile(r"(?<!for )(?<!, )\btarget (==|!=|in|not in) [\"'(\[{A-Z]")  # and no loop over targets


def test_importing_the_table_imports_nothing_else() -> None:
    code = """
import sys
import trtstream.errors
before = set(sys.modules)
import trtstream.targets
print(sorted(name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "['trtstream.targets']", done.stderr


@pytest.mark.parametrize("name", TARGETS)
def test_its_functions_exist(name: str) -> None:
    named = [value for value in vars(TARGETS[name]).values() if isinstance(value, partial)]
    assert len(named) >= 3
    for function in named:
        module, _, attribute = function.args[0].partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_loads_or_says_why_not(name: str) -> None:
    target = TARGETS[name]
    assert target.load is not None or target.why_not() is not None


def test_the_best_target_runs_here() -> None:
    assert TARGETS[best_target()].why_not() is None
    assert best_target(lambda target: target.device == "cpu") == "cpu"


def test_no_other_file_asks_which_target_it_is() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    asking = [
        name
        for name in tracked.stdout.split()
        if not name.startswith("tests/") and BRANCH.search(ROOT.joinpath(name).read_text())
    ]
    assert asking == []


def test_every_field_is_documented() -> None:
    assert Target.__doc__ is not None
    undocumented = [field.name for field in fields(Target) if f"``{field.name}" not in Target.__doc__]
    assert undocumented == []
