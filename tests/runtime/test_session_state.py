"""Saved sessions: they are loaded as they were saved, and any other file is refused by name."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.engines import random_tokens
from trtstream.errors import TrtstreamError
from trtstream.runtime import session_state
from trtstream.runtime.session_state import SessionState
from trtstream.runtime.streaming_engine import StreamingEngine

IDENTITY = {"checkpoint": "0123abcd", "dtype": "bfloat16", "eos_token_ids": (1, 2)}


def state(dtype: torch.dtype = torch.bfloat16) -> SessionState:
    """One with every bit pattern that two bytes have, NaNs included."""
    cache = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype).view(4, 2, 2, -1, 16)
    return SessionState(4, 12_345_678_901, random_tokens(30), cache)


def refusal(path: Path) -> str:
    with pytest.raises(TrtstreamError) as error:
        SessionState.load(path, IDENTITY)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_session_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = state(dtype)
    saved.save(tmp_path / "session", IDENTITY, {"pending": 7, "text": "Grüße"})
    loaded, metadata = SessionState.load(tmp_path / "session", IDENTITY)
    assert saved.kv_cache is not None
    assert loaded.kv_cache is not None
    assert (loaded.kv_cache.dtype, loaded.kv_cache.shape) == (dtype, saved.kv_cache.shape)
    assert torch.equal(loaded.kv_cache.view(torch.int16), saved.kv_cache.view(torch.int16))
    assert replace(loaded, kv_cache=None) == replace(saved, kv_cache=None)
    assert metadata == {"pending": 7, "text": "Grüße"}


def test_ids_alone(tmp_path: Path) -> None:
    for saved in (SessionState(4, 100, random_tokens(30)), SessionState(0, 0, [])):
        saved.save(tmp_path / "session", IDENTITY)
        assert SessionState.load(tmp_path / "session", IDENTITY) == (saved, {})


def test_an_engine_continues_what_it_saved(engine: StreamingEngine, tmp_path: Path) -> None:
    engine.prefill(0, random_tokens(50))
    engine.export_state(0).save(tmp_path / "session", IDENTITY)
    expected = [engine.decode([0], [token]) for token in (5, 6, 7)]
    engine.import_state(1, SessionState.load(tmp_path / "session", IDENTITY)[0])
    assert all(
        torch.equal(engine.decode([1], [token]), logits) for token, logits in zip((5, 6, 7), expected, strict=True)
    )
    assert engine.visible_tokens(1) == engine.visible_tokens(0)


def test_a_loaded_session_does_not_change_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "session"
    state().save(path, IDENTITY)
    loaded, _ = SessionState.load(path, IDENTITY)
    path.write_bytes(bytes(path.stat().st_size))
    assert loaded.kv_cache is not None
    assert loaded.kv_cache.view(torch.int16).flatten()[0] == -(1 << 15)


def test_every_flipped_byte_of_the_header_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "session"
    state().save(path, IDENTITY, {"pending": 7})
    contents = bytearray(path.read_bytes())
    for position in range(8 + int.from_bytes(contents[:8], "little")):
        for flip in (0x01, 0x20, 0xFF):  # a digit, a letter's case, everything
            contents[position] ^= flip
            path.write_bytes(contents)
            refusal(path)
            contents[position] ^= flip
    path.write_bytes(contents)
    SessionState.load(path, IDENTITY)


def test_flipped_bytes_of_the_body_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "session"
    state().save(path, IDENTITY)
    contents = bytearray(path.read_bytes())
    body = 8 + int.from_bytes(contents[:8], "little")
    for position in (*range(body, len(contents), 499), *range(len(contents) - 40, len(contents))):
        contents[position] ^= 0xFF
        path.write_bytes(contents)
        assert f"{path} is damaged (its SHA-256 does not match its contents)" in refusal(path)
        contents[position] ^= 0xFF


def test_a_file_of_another_length_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "session"
    SessionState(4, 100, random_tokens(30)).save(path, IDENTITY)
    contents = path.read_bytes()
    for length in range(len(contents)):
        path.write_bytes(contents[:length])
        refusal(path)
    path.write_bytes(contents + b"\0")
    refusal(path)


def test_another_format_version_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_state, "FORMAT_VERSION", "2")
    state().save(tmp_path / "session", IDENTITY)
    monkeypatch.undo()
    assert f"{tmp_path / 'session'} has session format 2, and this trtstream reads 1" in refusal(tmp_path / "session")


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({**IDENTITY, "dtype": "float32"}, "with dtype 'float32', and this one has 'bfloat16'"),
        ({**IDENTITY, "window": 64}, "with window 64, and this one has None"),
        ({"dtype": "bfloat16"}, "with checkpoint None, and this one has '0123abcd'"),
    ],
)
def test_a_session_of_something_else_is_refused(tmp_path: Path, other: dict[str, object], difference: str) -> None:
    state().save(tmp_path / "session", other)
    assert f"was saved {difference}" in refusal(tmp_path / "session")


def test_files_that_are_not_sessions(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"token_ids": torch.zeros(3)}, path)
    assert "is not a saved session" in refusal(path)
    path.write_text("hello")
    assert "cannot be read as a saved session" in refusal(path)
    assert "cannot be read as a saved session" in refusal(tmp_path)
    assert "cannot be read as a saved session" in refusal(tmp_path / "nothing")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond ``size`` bytes of a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "session"
    state().save(path, IDENTITY, {"number": 1})
    with largest_file(1000), pytest.raises(TrtstreamError, match=f"{path} cannot be written"):
        state().save(path, IDENTITY, {"number": 2})
    assert SessionState.load(path, IDENTITY)[1] == {"number": 1}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(TrtstreamError, match="cannot be written"):
        state().save(tmp_path / "missing" / "session", IDENTITY)


def test_only_the_owner_reads_a_session(tmp_path: Path) -> None:
    state().save(tmp_path / "session", IDENTITY)
    assert (tmp_path / "session").stat().st_mode & 0o777 == 0o600
