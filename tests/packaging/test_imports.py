"""Imports run one way, which `make lint` checks; these tests show that its check finds an import that does not."""

from __future__ import annotations

import graphlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.release import ROOT

# trtstream.load is the package's name for what a room below it does.
FACADE = ("trtstream", "trtstream.runtime.llm")

IMPORTS = """
import json, grimp
graph = grimp.build_graph("trtstream", "benchmarks", cache_dir=None)
print(json.dumps({name: sorted(graph.find_modules_directly_imported_by(name)) for name in graph.modules}))
"""


def find_circle(root: Path) -> list[str] | None:
    """Modules of which each imports the next and the last is the first, at any depth and inside functions too."""
    printed = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=root, check=True, capture_output=True, text=True, env={"PYTHONPATH": "."}
    )
    imports: dict[str, list[str]] = json.loads(printed.stdout)
    imports[FACADE[0]].remove(FACADE[1])
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def check_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """What `make imports` runs."""
    lint_imports = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([lint_imports, "--no-logo", "--no-cache"], cwd=root, capture_output=True, text=True)


@pytest.fixture
def copy(sources: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sources, tmp_path / "copy", symlinks=True)


def import_in_a_function(path: Path, module: str) -> None:
    with path.open("a") as file:
        file.write(f"\n\ndef _late() -> None:\n    import {module}\n")


def test_no_module_is_part_of_a_circle() -> None:
    assert find_circle(ROOT) is None


def test_a_circle_is_found(copy: Path) -> None:
    import_in_a_function(copy / "plugins/window.py", "trtstream.plugins.reference")
    import_in_a_function(copy / "plugins/positions.py", "trtstream.plugins.window")
    circle = find_circle(copy)
    assert circle is not None
    assert {"trtstream.plugins.window", "trtstream.plugins.reference"} <= set(circle)


def test_imports_in_the_wrong_direction_are_found(copy: Path) -> None:
    wrong = {
        ("plugins/window.py", "trtstream.plugins", "trtstream.runtime"): "trtstream.runtime.turn",
        ("plugins/positions.py", "trtstream.plugins", "trtstream.build"): "trtstream.build.recipes",
        ("deploy/serving/control.py", "trtstream.deploy", "trtstream.build"): "trtstream.build.recipes",
        (
            "deploy/gateway/turns.py",
            "trtstream.deploy.gateway",
            "trtstream.runtime.encoding",
        ): "trtstream.runtime.encoding",
        ("build/cpu.py", "trtstream.build", "trtstream.deploy"): "trtstream.deploy.client.metrics",
        ("build/cuda.py", "trtstream.build", "trtstream.runtime"): "trtstream.runtime.turn",
        ("trtstream/runtime/turn.py", "trtstream.runtime", "trtstream.evaluation"): "trtstream.evaluation.curve",
        ("trtstream/runtime/tokenizer.py", "trtstream.runtime", "transformers"): "transformers",
        ("trtstream/settings.py", "trtstream.settings", "trtstream.plugins"): "trtstream.plugins.window",
        ("trtstream/progress.py", "trtstream", "benchmarks"): "benchmarks.machine",
    }
    for (path, _, _), module in wrong.items():
        import_in_a_function(copy / path, module)
    (copy / "trtstream" / "unplaced.py").touch()
    checked = check_imports(copy)
    assert checked.returncode == 1
    for _, importer, imported in wrong:
        assert f"{importer} is not allowed to import {imported}" in checked.stdout
    assert "unplaced" in checked.stdout
