"""A hub on this machine, its repositories, and a user who fetches them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.build.hub.fetcher import FORK, Fetcher
from tests.build.hub.server import MAIN, OLD, Hub, Repository, serve
from tests.checkpoints import write_checkpoint
from tests.runtime.clients import BOS, EOS, byte_tokenizer


@pytest.fixture(scope="module")
def with_torch() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported torch, of which others are forked that fetch or are a command."""
    command = [sys.executable, "-c", FORK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny`` and ``other`` in one file, ``sharded`` in several; with what nobody needs next to the checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, seed, size in (("tiny", 0, "1GB"), ("other", 1, "1GB"), ("sharded", 0, "100KB")):
        folder = root / name
        config = {"vocab_size": 260, "bos_token_id": BOS, "eos_token_id": EOS}
        write_checkpoint(folder, "llama-gqa", seed=seed, max_shard_size=size, **config)
        byte_tokenizer().save_pretrained(folder)
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
        (folder / "README.md").write_text("a model card")
        (folder / "original").mkdir()
        (folder / "original" / "consolidated.safetensors").write_bytes(b"the same weights again")
    return root


@pytest.fixture
def hub(checkpoints: Path) -> Iterator[Hub]:
    tiny, other, sharded = (checkpoints / name for name in ("tiny", "other", "sharded"))
    mains = {"main": MAIN}
    repositories = {
        "owner/tiny": Repository({"main": MAIN, "v1": OLD}, {MAIN: tiny, OLD: other}),
        "owner/sharded": Repository(mains, {MAIN: sharded}),
        "owner/private": Repository(mains, {MAIN: tiny}, private=True, readers=("hf_reader",)),
        "owner/gated": Repository(mains, {MAIN: tiny}, gated=True, readers=("hf_reader",)),
    }
    with serve(Hub(repositories)) as hub:
        yield hub


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Of a user who has fetched nothing, and is not logged in."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**ours, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}


@pytest.fixture
def fetch(with_torch: subprocess.Popen[str], environment: dict[str, str], tmp_path: Path) -> Fetcher:
    return Fetcher(with_torch, environment, tmp_path)
