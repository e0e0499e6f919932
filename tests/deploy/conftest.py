"""A tiny engine with a tokenizer, and a real ``trtstream serve`` of it on free ports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
START_SECONDS = 60
READY = re.compile(r"ready: grpc=(\S+) http=(\S+) metrics=(\S+) models=(\S+)\n")


@dataclass
class Server:
    """A running ``trtstream serve``; its stderr goes to the file ``log``."""

    process: subprocess.Popen[str]
    log: Path
    ready_line: str
    grpc_url: str = field(init=False)
    http_url: str = field(init=False)
    metrics_url: str = field(init=False)
    models: list[str] = field(init=False)

    def __post_init__(self) -> None:
        match = READY.fullmatch(self.ready_line)
        assert match, f"not ready: {self.ready_line!r}\n{self.log.read_text()}"
        self.grpc_url, self.http_url, self.metrics_url = match[1], match[2], match[3]
        self.models = match[4].split(",")

    def stop(self, *signals: signal.Signals) -> int:
        """Send signals (default SIGTERM) and wait; returns the exit code."""
        for number in signals or (signal.SIGTERM,):
            self.process.send_signal(number)
        return self.process.wait(START_SECONDS)


ServeCommand = Callable[..., "subprocess.Popen[str]"]


def serve_process(source: Path, log: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``trtstream serve`` on free ports, as a user would."""
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    return subprocess.Popen(
        [sys.executable, "-m", "trtstream", "serve", str(source), *ports, *options],
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with one token for each ASCII character."""
    from trtstream.build.checkpoint import open_checkpoint
    from trtstream.build.cpu import build_cpu_engine
    from trtstream.settings import BuildConfig

    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = write_checkpoint(folder / "checkpoint", "llama-gqa")
    _write_tokenizer(checkpoint)
    settings = BuildConfig(max_batch_size=4, max_num_tokens=32, max_attention_window=64, max_sink_token_length=32)
    build_cpu_engine(open_checkpoint(checkpoint), settings, folder / "engine", lambda done, total: None)
    return folder / "engine"


@pytest.fixture(scope="session")
def server(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A served engine, shared by all tests that leave it as it was."""
    log = tmp_path_factory.mktemp("server") / "log"
    process = serve_process(engine, log)
    try:
        yield Server(process, log, process.stdout.readline())
    finally:
        process.terminate()
        process.wait(START_SECONDS)


@pytest.fixture
def start(engine: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``start(*options, source=engine)``: a server of one's own."""
    processes: list[subprocess.Popen[str]] = []

    def start(*options: str, source: Path = engine) -> Server:
        log = tmp_path / f"log{len(processes)}"
        processes.append(serve_process(source, log, *options))
        return Server(processes[-1], log, processes[-1].stdout.readline())

    yield start
    for process in processes:
        process.terminate()
        process.wait(START_SECONDS)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = bytes_to_unicode()
    tokenizer = Tokenizer(models.BPE(vocab={characters[byte]: byte for byte in range(128)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
