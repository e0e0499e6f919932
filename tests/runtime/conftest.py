"""One tiny random Llama with a token for each byte, built once; tests load it for themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from tests.checkpoints import write_checkpoint
from tests.runtime.clients import BOS, EOS, byte_tokenizer
from tests.sessions.conftest import new_database, postgres  # noqa: F401 (a fixture)
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.cpu import build_cpu_engine
from trtstream.runtime.llm import open_journal
from trtstream.runtime.loading import load_engine
from trtstream.runtime.scheduler import Scheduler
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.sessions.turn_log import TurnLog
from trtstream.settings import BuildConfig


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    write_checkpoint(folder / "checkpoint", "llama-gqa", vocab_size=260, bos_token_id=BOS, eos_token_id=EOS)
    tokenizer.save_pretrained(folder / "checkpoint")
    # A session sees 4 + 20 tokens, or 12 + 20 with a system text.
    sizes = BuildConfig(max_batch_size=3, max_num_tokens=16, max_attention_window=32, max_sink_token_length=12)
    build_cpu_engine(open_checkpoint(folder / "checkpoint"), sizes, folder / "engine", lambda done, total: None)
    return folder / "engine"


@pytest.fixture
def engine(engine_folder: Path) -> StreamingEngine:
    return load_engine(engine_folder)


@pytest.fixture
def schedule(engine_folder: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[Callable[..., Scheduler]]:
    """Makes schedulers, by default on an engine of their own, and closes them when the test ends."""
    schedulers: list[Scheduler] = []

    def schedule(engine: StreamingEngine | None = None, **limits: float) -> Scheduler:
        schedulers.append(Scheduler(engine or load_engine(engine_folder), tokenizer, SchedulerLimits(**limits)))
        return schedulers[-1]

    yield schedule
    for scheduler in schedulers:
        scheduler.close()


@pytest.fixture
def scheduler(schedule: Callable[..., Scheduler]) -> Scheduler:
    return schedule()


@pytest.fixture
def store(request, tmp_path: Path) -> str:
    """SQLite's URL, or with an indirect parameter PostgreSQL's."""
    if getattr(request, "param", "sqlite") == "postgresql":
        return new_database(request.getfixturevalue("postgres"))
    return f"sqlite:///{tmp_path}/sessions.db"


@pytest.fixture
def log(store: str) -> Iterator[TurnLog]:
    with closing(TurnLog(store)) as log:
        yield log


@pytest.fixture
def start(engine_folder, tokenizer, store) -> Iterator[Callable[..., Scheduler]]:
    """``start(**limits)``: a scheduler with an engine of its own on the store, as a server that starts has it."""
    schedulers: list[Scheduler] = []

    def start(folder: Path = engine_folder, snapshot_dir: Path | None = None, **limits) -> Scheduler:
        settings = SchedulerLimits(**limits)
        journal = open_journal(folder, store, settings, snapshot_dir)
        schedulers.append(Scheduler(load_engine(folder), tokenizer, settings, journal))
        return schedulers[-1]

    yield start
    for scheduler in schedulers:
        scheduler.close()
