from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from trtstream.errors import TrtstreamError
from trtstream.samples import king_james
from trtstream.samples.king_james import FILE_NAME, SHA256, fetch_king_james


@pytest.mark.skipif(not Path("/usr/bin/apt-get").exists(), reason="needs Debian's apt")
def test_the_text_is_fetched_once(tmp_path: Path) -> None:
    path = fetch_king_james(tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    assert path.read_text().startswith("In the beginning God created the heaven and the earth.\n")
    assert path.read_text().endswith("The grace of our Lord Jesus Christ be with you all. Amen.\n")
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]  # no scratch files stay
    written = path.stat().st_mtime_ns
    assert fetch_king_james(tmp_path).stat().st_mtime_ns == written


def test_without_apt_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TrtstreamError, match=r"apt-get failed \(not found\); .* run `bible -f gen1:1-rev22:21"):
        fetch_king_james(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a small stand-in, known by its own checksum"
    monkeypatch.setattr(king_james, "SHA256", hashlib.sha256(content).hexdigest())
    (tmp_path / FILE_NAME).write_bytes(content)
    monkeypatch.setenv("TRTSTREAM_CACHE", str(tmp_path))
    assert fetch_king_james() == tmp_path / FILE_NAME
