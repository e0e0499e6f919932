"""The README's commands run as written, one after the other in one folder. Blocks that call make are CI's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    found = FENCE.findall((ROOT / "README.md").read_text())
    return [(language, code) for language, code in found if "make " not in code]


def test_the_readme_runs(smollm2_gguf: Path, tmp_path: Path) -> None:
    assert [language for language, _ in blocks()] == ["bash", "python"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TRTSTREAM_CACHE": str(smollm2_gguf.parent),
    }
    outputs = []
    for language, code in blocks():
        command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    assert "sink tokens 4 (room for 64)" in outputs[0]
    assert "The capital of France is Paris." in outputs[0]
    assert '"text_output"' in outputs[0]
    assert outputs[1].startswith("The capital of France is Paris.\nParis is famous for")


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
