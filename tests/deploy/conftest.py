"""A tiny engine with a tokenizer, and real servers of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.deploy.server import Server, serving
from tests.deploy.tokenizer import write_byte_tokenizer


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with one token for each ASCII character."""
    from trtstream.build.checkpoint import open_checkpoint
    from trtstream.build.cpu import build_cpu_engine
    from trtstream.settings import BuildConfig

    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = write_checkpoint(folder / "checkpoint", "llama-gqa")
    write_byte_tokenizer(checkpoint, vocab_size=128)
    settings = BuildConfig(max_batch_size=4, max_num_tokens=32, max_attention_window=64, max_sink_token_length=32)
    build_cpu_engine(open_checkpoint(checkpoint), settings, folder / "engine", lambda done, total: None)
    return folder / "engine"


@pytest.fixture(scope="session")
def server(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A served engine, shared by all tests that leave it as it was."""
    with serving(engine, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="session")
def open_server(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same for everybody, without TLS."""
    with serving(engine, tmp_path_factory.mktemp("server") / "log", "--host", "0.0.0.0", "--insecure") as server:
        yield server


@pytest.fixture
def start(engine: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``start(*options, source=engine)``: another server."""
    logs = (tmp_path / f"log{number}" for number in count())
    with ExitStack() as servers:
        yield lambda *options, source=engine: servers.enter_context(serving(source, next(logs), *options))
