"""Engine directories that are refused, and builds that are interrupted and leave nothing that loads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engines import build_variant
from trtstream.engine_dir import read_engine
from trtstream.errors import TrtstreamError
from trtstream.runtime.loading import load_engine


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_variant(tmp_path_factory.mktemp("built"), "llama-gqa", max_attention_window=64)[1]


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "engine"))


def edit(engine: Path, **changes: object) -> None:
    config = json.loads((engine / "config.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    (engine / "config.json").write_text(json.dumps(config))


def test_it_loads_as_built(engine: Path) -> None:
    assert load_engine(engine).build.max_attention_window == 64
    config = read_engine(engine)
    assert config.target == "cpu"
    assert set(config.files) == {"rank0.safetensors", "rank0.so"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "engine format 1, and this trtstream reads 2; rebuild"),
        ({"version": 99}, "engine format 99, and this trtstream reads 2; rebuild"),
        ({"target": "abacus"}, "target is 'abacus'; this trtstream knows cpu, "),
        ({"toolchain__instruction_sets": ["avx2", "sse9"]}, "needs a CPU with sse9; build it again on this machine"),
        ({"build_config__max_attention_window": 128}, "compiled for other sizes than config.json gives; rebuild"),
        ({"build_config__max_attention_window": 4}, "no room for recent tokens"),
        ({"build_config__max_batch_size": 100_000_000}, r"GB for 100000000 sessions, and .* GB are free"),
        ({"build_config__surprise": 1}, "unknown BuildConfig field 'surprise'"),
        ({"pretrained_config__surprise": 1}, "unknown ModelConfig field 'surprise'"),
        ({"files__rank0.safetensors": "0" * 64}, r"rank0.safetensors is damaged \(its SHA-256 .*rebuild"),
    ],
)
def test_refusals(engine: Path, changes: dict[str, object], message: str) -> None:
    edit(engine, **changes)
    with pytest.raises(TrtstreamError, match=message):
        load_engine(engine)


def test_missing_and_damaged_files_are_named(engine: Path) -> None:
    weights = engine / "rank0.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(TrtstreamError, match=r"rank0\.safetensors is damaged"):
        load_engine(engine)
    weights.unlink()
    with pytest.raises(TrtstreamError, match=r"lacks rank0\.safetensors"):
        load_engine(engine)
    (engine / "config.json").write_text("{")
    with pytest.raises(TrtstreamError, match=r"config\.json cannot be read"):
        load_engine(engine)
    (engine / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(
        TrtstreamError, match="is not an engine: it is a checkpoint; make an engine of it with `trtstream build`"
    ):
        load_engine(engine)
    (engine / "config.json").unlink()
    with pytest.raises(
        TrtstreamError, match=r"is not an engine: it has no config\.json; make one with `trtstream build`"
    ):
        load_engine(engine)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing_that_loads(
    stop: signal.Signals, smollm2_gguf: Path, tmp_path: Path
) -> None:
    output = tmp_path / "engine"
    command = [sys.executable, "-m", "trtstream", "build", str(smollm2_gguf), "--output", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not list(tmp_path.glob("*/rank0.safetensors")) + list(tmp_path.glob(".*/rank0.safetensors")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(stop)
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
    assert not output.exists()
    if stop != signal.SIGKILL:
        assert os.listdir(tmp_path) == []
    for left in tmp_path.iterdir():
        with pytest.raises(TrtstreamError):
            load_engine(left)
