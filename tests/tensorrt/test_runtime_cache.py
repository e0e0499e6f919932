"""TensorRT-RTX's runtime cache: its file, and the methods of the installed library that the executor calls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tensorrt_rtx as trt

from trtstream.engine_dir import ENGINE
from trtstream.runtime.tensorrt_runtime_cache import read_runtime_cache, runtime_cache_path, save_runtime_cache

CONTENTS = bytes(range(256)) * 40


def found(path: Path, accepts: bool = True) -> list[bytes]:
    """What the library is given."""
    given: list[bytes] = []

    def deserialize(contents: bytes) -> bool:
        given.append(contents)
        return accepts

    read_runtime_cache(path, deserialize)
    return given


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return runtime_cache_path(tmp_path / ENGINE, "1.7.1.116", (12, 0))


def test_each_version_and_gpu_has_its_own(path: Path) -> None:
    assert path.name == "rank0.1.7.1.116.sm120.cache"
    others = [runtime_cache_path(path.with_name(ENGINE), *key) for key in (("1.7.1.116", (8, 9)), ("1.8", (12, 0)))]
    assert len({path, *others}) == 3


def test_what_was_saved_is_given_to_the_library(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert found(path) == []
    save_runtime_cache(path, b"old")
    save_runtime_cache(path, CONTENTS)
    assert found(path) == [CONTENTS]
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644, "another user who serves the engine cannot read it"
    assert not caplog.messages


@pytest.mark.parametrize("damage", ["cut off", "flipped", "empty"])
def test_a_damaged_one_is_ignored_in_a_line(damage: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_runtime_cache(path, CONTENTS)
    saved = bytearray(path.read_bytes())
    if damage == "flipped":
        saved[-5] ^= 1
    path.write_bytes({"cut off": saved[:-7], "flipped": saved, "empty": b""}[damage])
    assert found(path) == []
    assert caplog.messages == [f"{path} is not used: it is damaged; it will be written again"]


def test_a_foreign_one_is_ignored_in_a_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_runtime_cache(path, CONTENTS)
    assert found(path, accepts=False) == [CONTENTS]
    (message,) = caplog.messages
    assert message.startswith(f"{path} is not used: another GPU")


def test_a_place_that_cannot_be_read_or_written_is_named_in_a_line(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()
    save_runtime_cache(path, CONTENTS)
    assert found(path) == []
    assert os.listdir(path.parent) == [path.name]
    assert [str(path) in message for message in caplog.messages] == [True, True]


def test_the_library_has_what_the_executor_calls() -> None:
    """Its runtime needs a GPU; its classes do not."""
    for owner, names in {
        trt.IRuntimeConfig: ("create_runtime_cache", "set_runtime_cache"),
        trt.IRuntimeCache: ("serialize", "deserialize"),
        trt.ICudaEngine: ("get_aliased_input_tensor", "create_runtime_config"),
        trt.IExecutionContext: ("is_stream_capturable",),
    }.items():
        assert [name for name in names if not hasattr(owner, name)] == []


def test_the_library_lists_no_hopper() -> None:
    """As docs/tensorrt.md says."""
    assert {*trt.ComputeCapability.__members__} - {"NONE", "CURRENT"} == {
        "SM75", "SM80", "SM86", "SM89", "SM120", "SM121",
    }  # fmt: skip
