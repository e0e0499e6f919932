"""The commands of README and docs run as written, a page's one after the other in one folder.

Blocks that call make or pip are CI's own; what needs a GPU, or takes long and has a test of its own, is in text blocks.
"""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.build.hub.server import Hub, Repository, serve
from tests.pages import FENCE, ROOT, blocks, shown_conversation
from tests.smollm2_folder import write_smollm2_folder

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
SECONDS = 280  # for a block; pytest's own limit is 300


def outputs_of(page: str, folder: Path, **variables: str) -> list[str]:
    """What each block of a page prints, run in ``folder``."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    del environment["OMP_NUM_THREADS"]  # a reader has set nothing
    outputs = []
    for language, code in blocks(page):
        command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):  # a server that a block has left behind
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, stderr
        outputs.append(stdout)
    return outputs


@pytest.fixture(scope="module")
def hub(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hugging Face hub that has SmolLM2."""
    folder = tmp_path_factory.mktemp("hub") / "smollm2"
    write_smollm2_folder(smollm2_gguf, folder)
    commit = "5" * 40
    with serve(Hub({"HuggingFaceTB/SmolLM2-135M-Instruct": Repository({"main": commit}, {commit: folder})})) as hub:
        yield hub


@pytest.mark.slow
@pytest.mark.triton
def test_the_readme_runs(hub: Hub, tmp_path: Path) -> None:
    """The Python block has the conversation that the page shows."""
    assert [language for language, _ in blocks("README.md")] == ["bash", "python"]
    outputs = outputs_of("README.md", tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
    assert "run cpu" in outputs[0]
    assert "sink tokens 4 (room for 64)" in outputs[0]
    assert "The capital of France is Paris." in outputs[0]
    assert '"text_output"' in outputs[0]
    assert outputs[1].splitlines() == shown_conversation()[1]


@pytest.mark.slow
def test_the_tensorrt_page_runs(smollm2_gguf: Path, tmp_path: Path) -> None:
    (output,) = outputs_of("docs/tensorrt.md", tmp_path, TRTSTREAM_CACHE=str(smollm2_gguf.parent))
    assert "sessions in 24 GB" in output
    assert list(tmp_path.iterdir()) == []


def test_the_readme_names_the_extras() -> None:
    """Each that is not for those who change the code."""
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^([a-z-]+) = ", section, re.MULTILINE)
    rows = re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(extras) - {"compare", "dev"} <= set(re.findall("[a-z-]+", " ".join(rows)))


def test_every_page_with_commands_is_run() -> None:
    assert {page.name for page in (ROOT / "docs").glob("*.md") if FENCE.search(page.read_text())} == {"tensorrt.md"}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_that_are_named_exist() -> None:
    """A path that begins with a folder of the root; a module's name alone, in any folder."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    modules = {Path(name).name for name in tracked}
    roots = "|".join({name.partition("/")[0] for name in tracked if "/" in name})
    for page in PAGES:
        text = page.read_text()
        names = re.findall(rf"`((?:{roots})/[\w./-]+\.\w+)`", text)
        assert [name for name in names if not (ROOT / name).is_file()] == [], page.name
        names = [] if page.name == "tensorrt-llm.md" else re.findall(r"`(\w+\.py)`", text)  # it names upstream's
        assert [name for name in names if name not in modules] == [], page.name
    folders = re.findall(r"`((?:[\w-]+/)+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert [name for name in folders if not (ROOT / name).is_dir()] == []


def test_the_picture_of_the_rooms_is_drawn_from_the_imports() -> None:
    page = (ROOT / "docs" / "structures.md").read_text()
    draw = runpy.run_path(str(ROOT / "docs" / "rooms.py"))
    assert draw["drawn"](page) == page
    assert "commands --> evaluation & build & deploy" in page
    assert re.search("^    plugins -->", page, re.MULTILINE) is None


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
