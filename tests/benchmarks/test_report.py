"""docs/results.md is what benchmarks/report.py makes of the committed JSON files."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # as Python does for a script

import report  # noqa: E402


def test_the_document_is_made_of_the_files_byte_for_byte() -> None:
    assert report.DOCUMENT.read_bytes() == report.document().encode()


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\((\.\./[^)]*)\)", report.document())
    assert len(links) > 2 * len(report.SECTIONS) - 2
    for link in links:
        assert (report.DOCUMENT.parent / link).exists(), link


def test_other_figures_give_another_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in report.RESULTS.glob("*.json"):
        text = path.read_text()
        (tmp_path / path.name).write_text(re.sub(r'("perplexity": )\d', r"\g<1>9", text))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.DOCUMENT.read_bytes() != report.document().encode()
