"""Engine directories that are refused, and builds that are interrupted and leave nothing that loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.command_line import run_in_process
from tests.engines import build_variant
from trtstream.engine_dir import config_checksum, read_engine
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
    config["checksum"] = config_checksum(config)
    (engine / "config.json").write_text(json.dumps(config))


def test_it_loads_as_built(engine: Path) -> None:
    assert load_engine(engine).build.max_attention_window == 64
    config = read_engine(engine)
    assert config.target == "cpu"
    assert set(config.files) == {"rank0.safetensors", "rank0.so"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "engine format 1, and this trtstream reads 5; rebuild"),
        ({"version": 99}, "engine format 99, and this trtstream reads 5; rebuild"),
        ({"target": "abacus"}, "target is 'abacus'; this trtstream knows cpu, "),
        ({"toolchain__instruction_sets": ["avx2", "sse9"]}, "needs a CPU with sse9; build it again on this machine"),
        ({"pretrained_config__num_attention_heads": 8}, "compiled for other sizes than config.json gives; rebuild"),
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


def test_an_edited_config_is_refused_until_its_checksum_follows(engine: Path) -> None:
    path = engine / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"norm_eps": 1e-06', '"norm_eps": 0.5'))
    assert path.read_text() != text
    with pytest.raises(TrtstreamError, match=r"config\.json was edited or is damaged .* rebuild the engine"):
        load_engine(engine)
    edit(engine)
    assert load_engine(engine).model.norm_eps == 0.5
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))  # the same values in another layout
    assert load_engine(engine).model.norm_eps == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": ["cpu"]}, "target is ['cpu']; it must be a printable string"),
        ({"toolchain__torch": 2.11}, "toolchain, 'torch' is 2.11; it must be a list"),
        ({"toolchain__instruction_sets": [1]}, "'instruction_sets' is 1; it must be a printable string"),
        ({"files": {}}, "files lacks rank0.safetensors, which an engine for cpu has"),
        ({"files__rank0.so": "beef"}, "'rank0.so' is 'beef'; it must be a printable string of 64 hexa"),
        ({"files__../secret": "0" * 64}, "lacks ../secret"),
        ({"files__/etc/passwd": "0" * 64}, "/etc/passwd leads out of the engine"),
        ({"files__/dev/zero": "0" * 64}, "/dev/zero leads out of the engine"),
        ({"pretrained_config": 7}, "pretrained_config is 7; it must be an object"),
        ({"pretrained_config__hidden_size": True}, "hidden_size is True; it must be a whole number from 1 to 2"),
        ({"pretrained_config__vocab_size": 10**400}, "vocab_size is 1000"),
        ({"pretrained_config__norm": "batch"}, "norm is 'batch'; it must be a printable string that is"),
        ({"pretrained_config__norm_eps": "x"}, "norm_eps is 'x'; it must be a finite number from 0 to 1"),
        ({"pretrained_config__eos_token_ids": [1 << 20]}, "eos_token_ids has 1048576, outside the vocabulary of"),
        ({"pretrained_config__eos_token_ids": [None]}, "eos_token_ids is None; it must be a whole number"),
        ({"pretrained_config__num_key_value_heads": 3}, "must be a multiple of num_key_value_heads 3"),
        ({"pretrained_config__head_dim": 3}, "head_dim is 3; RoPE needs an even number"),
        ({"pretrained_config__intermediate_size": 8}, "down.weight has shape (64, 96); config.json gives (64, 8)"),
        ({"pretrained_config__num_hidden_layers": 1}, "config.json's model has no tensor 'layers."),
        ({"pretrained_config__rope__kind": "yarn"}, "rope has kind 'yarn' without factor"),
        ({"pretrained_config__rope__theta": 0}, "theta is 0"),
        ({"build_config__sink_token": 99_999}, "--sink-token 99999 is outside the vocabulary"),
        ({"build_config__max_num_tokens": 2.5}, "max_num_tokens is 2.5; it must be a whole number"),
    ],
)
def test_every_field_is_checked_whatever_the_checksum(engine: Path, changes: dict[str, object], message: str) -> None:
    edit(engine, **changes)
    with pytest.raises(TrtstreamError, match=re.escape(message)) as refusal:
        load_engine(engine)
    assert "\n" not in str(refusal.value)
    assert "rebuild" in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "recursion"),
        (b'{"version": 4, "version": 4}', "an object has the same key twice"),
        (b'{"version": NaN}', "NaN is not a number of JSON"),
        (b'{"version": ' + b"9" * 5000 + b"}", "digits"),
        (b"\xff\xfe", "utf-8"),
        (b" " * (1 << 25), "it has more than 16,777,216 bytes"),
    ],
)
def test_configs_that_are_not_json_of_ours(engine: Path, text: bytes, message: str) -> None:
    (engine / "config.json").write_bytes(text)
    with pytest.raises(TrtstreamError, match=rf"config\.json cannot be read \(.*{message}.*; rebuild the engine"):
        read_engine(engine)


@pytest.mark.parametrize("name", ["config.json", "rank0.safetensors", "rank0.so"])
def test_only_regular_files_inside_the_engine_are_opened(engine: Path, tmp_path: Path, name: str) -> None:
    path, outside = engine / name, tmp_path / "outside"
    path.rename(outside)
    os.mkfifo(path)
    with pytest.raises(TrtstreamError, match="not a regular file"):
        load_engine(engine)
    path.unlink()
    path.mkdir()
    with pytest.raises(TrtstreamError, match="not a regular file"):
        load_engine(engine)
    path.rmdir()
    path.symlink_to(outside)
    with pytest.raises(TrtstreamError, match="leads out of the engine"):
        load_engine(engine)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(TrtstreamError):
        load_engine(engine)
    path.unlink()
    outside.rename(engine / "inside")
    path.symlink_to("inside")
    load_engine(engine)


def test_a_file_that_is_added_to_the_tokenizer_is_refused(engine: Path) -> None:
    (engine / "tokenizer").mkdir(exist_ok=True)
    (engine / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(TrtstreamError, match=r"chat_template\.jinja is not among the engine's files; remove it"):
        load_engine(engine)


def test_inspect_verifies_all_checksums(engine: Path) -> None:
    done = run_in_process("inspect", engine, "--verify")
    assert done.returncode == 0, done.stderr
    assert "right: config.json and 2 files" in done.stdout
    with (engine / "rank0.so").open("ab") as file:
        file.write(b"?")
    assert run_in_process("inspect", engine).returncode == 0
    done = run_in_process("inspect", engine, "--verify")
    assert done.returncode == 1
    assert "rank0.so is damaged" in done.stderr


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is opened at once, and whose 100 MB take a moment to be written."""
    return write_checkpoint(tmp_path_factory.mktemp("large"), "llama-gqa", vocab_size=200_000)


@pytest.mark.quick("15")
@pytest.mark.process
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing_that_loads(stop: signal.Signals, large: Path, tmp_path: Path) -> None:
    output = tmp_path / "engine"
    command = [sys.executable, "-m", "trtstream", "build", str(large), "--output", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not list(tmp_path.glob("*/rank0.safetensors")) + list(tmp_path.glob(".*/rank0.safetensors")):
            assert process.poll() is None
            time.sleep(0.005)
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
