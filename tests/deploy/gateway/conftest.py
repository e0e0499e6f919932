"""A real server with a gateway and a session store, and openai-python's clients of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.checkpoints import write_checkpoint
from tests.deploy.server import Server, serving
from tests.deploy.tokenizer import write_byte_tokenizer


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/sessions.db"


@pytest.fixture(scope="package")
def server(engine: Path, store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For tests that leave it as it was."""
    log = tmp_path_factory.mktemp("gateway") / "log"
    with serving(engine, log, "--openai-port", "0", "--session-store", store) as server:
        yield server


@pytest.fixture(scope="package")
def endless_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine whose greedy answers never end by themselves: the logit of its end token is always 0."""
    from safetensors.torch import load_file, save_file

    from trtstream.build.checkpoint import open_checkpoint
    from trtstream.build.cpu import build_cpu_engine
    from trtstream.settings import BuildConfig

    folder = tmp_path_factory.mktemp("endless")
    checkpoint = write_checkpoint(folder / "checkpoint", "llama-gqa")
    write_byte_tokenizer(checkpoint, vocab_size=128)
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"][json.loads((checkpoint / "config.json").read_text())["eos_token_id"]] = 0
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    sizes = BuildConfig(max_batch_size=4, max_num_tokens=32, max_attention_window=64)
    build_cpu_engine(open_checkpoint(checkpoint), sizes, folder / "engine", lambda done, total: None)
    return folder / "engine"


@pytest.fixture(scope="package")
def counting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose every greedy answer to a chat is "?@ABC...XYZ": the successors of the template's last token.

    Nothing comes from attention and the MLP, and the head looks for the token before each. A quarter of the window has
    room for a sentence that is read again.
    """
    from safetensors.torch import load_file, save_file
    from torch.nn.functional import normalize

    from trtstream.build.checkpoint import open_checkpoint
    from trtstream.build.cpu import build_cpu_engine
    from trtstream.settings import BuildConfig

    folder = tmp_path_factory.mktemp("counting")
    checkpoint = write_checkpoint(folder / "checkpoint", "llama-gqa")
    write_byte_tokenizer(checkpoint, vocab_size=128)
    weights = load_file(checkpoint / "model.safetensors")
    for name, values in weights.items():
        if "o_proj" in name or "down_proj" in name:
            values.zero_()
    embedding = normalize(weights["model.embed_tokens.weight"])
    end = json.loads((checkpoint / "config.json").read_text())["eos_token_id"]
    head = embedding.roll(1, 0)
    head[end], head[ord("Z") + 1] = embedding[ord("Z")], 0
    weights |= {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    weights["model.norm.weight"].fill_(1)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    sizes = BuildConfig(max_batch_size=4, max_num_tokens=64, max_attention_window=256, max_sink_token_length=48)
    build_cpu_engine(open_checkpoint(checkpoint), sizes, folder / "engine", lambda done, total: None)
    store = f"sqlite:///{folder}/sessions.db"
    with serving(folder / "engine", folder / "log", "--openai-port", "0", "--session-store", store) as server:
        yield server


def connect(server: Server) -> openai.OpenAI:
    """A client that does not try again by itself."""
    return openai.OpenAI(base_url=f"http://{server.openai_url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with connect(server) as client:
        yield client
