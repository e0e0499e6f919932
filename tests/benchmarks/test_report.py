"""docs/results.md is what benchmarks.report makes of the committed JSON files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import paper, report


def test_the_document_is_made_of_the_files_byte_for_byte() -> None:
    assert report.DOCUMENT.read_bytes() == report.document().encode()


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\((\.\./[^)]*)\)", report.document())
    assert {Path(link).name for link in links} >= {path.name for path in report.RESULTS.glob("*.png")}
    for link in links:
        assert (report.DOCUMENT.parent / link).exists(), link


def test_the_papers_figures_stand_beside_ours() -> None:
    document = report.document()
    cells = {cell.strip() for line in document.splitlines() if line.startswith("|") for cell in line.split("|")}
    tables = (paper.SINKS, paper.LEARNED_SINK, paper.RECALL)
    assert cells.issuperset(figure for table in tables for row in table.values() for figure in row)
    assert cells.issuperset(paper.METHODS.values())
    assert cells.issuperset(f"{ms:,}" for row in paper.LATENCY.values() for pair in row.values() for ms in pair)
    assert "22.2" in cells  # the ratio that the paper's abstract names
    assert paper.ADDRESS in document


@pytest.mark.parametrize("name", ["perplexity", "perplexity_at_sampled", "right"])
def test_other_figures_give_another_document(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in report.RESULTS.glob("*.json"):
        text = path.read_text()
        (tmp_path / path.name).write_text(re.sub(rf'("{name}": )\d', r"\g<1>789", text))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.DOCUMENT.read_bytes() != report.document().encode()
