"""The commands of README and docs run as written, a page's one after the other in one folder.

Blocks that call make are CI's own; what needs a GPU, or takes long and has a test of its own, stands in text blocks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    found = FENCE.findall((ROOT / page).read_text())
    return [(language, code) for language, code in found if "make " not in code]


def outputs_of(page: str, folder: Path, cache: Path) -> list[str]:
    """What each block of a page prints, run in ``folder``."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TRTSTREAM_CACHE": str(cache),
    }
    del environment["OMP_NUM_THREADS"]  # a reader has set nothing
    outputs = []
    for language, code in blocks(page):
        command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    return outputs


@pytest.mark.slow
@pytest.mark.triton
def test_the_readme_runs(smollm2_gguf: Path, tmp_path: Path) -> None:
    assert [language for language, _ in blocks("README.md")] == ["bash", "python"]
    outputs = outputs_of("README.md", tmp_path, smollm2_gguf.parent)
    assert "sink tokens 4 (room for 64)" in outputs[0]
    assert "The capital of France is Paris." in outputs[0]
    assert '"text_output"' in outputs[0]
    assert outputs[1].startswith("The capital of France is Paris.\nParis is famous for")


@pytest.mark.process
def test_the_tensorrt_page_runs(smollm2_gguf: Path, tmp_path: Path) -> None:
    (output,) = outputs_of("docs/tensorrt.md", tmp_path, smollm2_gguf.parent)
    assert "sessions in 24 GB" in output
    assert list(tmp_path.iterdir()) == []


def test_every_page_with_commands_is_run() -> None:
    assert {page.name for page in (ROOT / "docs").glob("*.md") if FENCE.search(page.read_text())} == {"tensorrt.md"}


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
