"""The fingerprint of a checkpoint, which says whose sessions an engine can continue."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.deploy.tokenizer import write_byte_tokenizer
from tests.engines import SIZES
from trtstream.build.checkpoint import open_checkpoint
from trtstream.engine_dir import read_engine
from trtstream.settings import BuildConfig
from trtstream.targets import TARGETS


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "checkpoint", "llama-gqa")
    write_byte_tokenizer(folder, vocab_size=128)
    return folder


def test_engines_of_one_checkpoint_have_one_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    """Whatever the target and the window, and wherever the checkpoint is."""
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    builds = [("cpu", checkpoint, 28), ("cuda", moved, 40)]
    for target, folder, window in builds:
        build = BuildConfig(**{**SIZES, "max_attention_window": window})
        TARGETS[target].build(open_checkpoint(folder), build, tmp_path / target, lambda done, total: None)
    fingerprints = {read_engine(tmp_path / target).fingerprint for target, *_ in builds}
    assert fingerprints == {open_checkpoint(checkpoint).fingerprint()}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_another_checkpoint_has_another(checkpoint: Path, name: str) -> None:
    before = open_checkpoint(checkpoint).fingerprint()
    content = (checkpoint / name).read_bytes()
    # JSON takes a space at its end, and the last byte of safetensors is a weight's.
    changed = content[:-1] + bytes([content[-1] ^ 1]) if name.endswith("safetensors") else content + b" "
    (checkpoint / name).write_bytes(changed)
    assert open_checkpoint(checkpoint).fingerprint() != before
    (checkpoint / name).write_bytes(content)
    (checkpoint / "README.md").write_text("A model.")
    assert open_checkpoint(checkpoint).fingerprint() == before
