"""What is refused or goes wrong when a repository of a hub is fetched: one line each, and nothing is lost."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build.hub.fetcher import FETCH, Fetcher
from tests.build.hub.server import MAIN, OLD, Hub, Repository

pytestmark = pytest.mark.process


def test_a_revision_of_a_path_is_refused(fetch: Fetcher, checkpoints: Path, tmp_path: Path) -> None:
    arguments = (checkpoints / "tiny", "--revision", "v1", "--output", tmp_path / "engine")
    done = fetch.command("build", *arguments)
    assert done.returncode == 2
    assert "--revision is for a repository on the Hugging Face hub" in done.stderr


def test_a_family_that_is_not_supported_is_refused_before_its_weights_are_fetched(hub: Hub, fetch: Fetcher) -> None:
    folder = hub.repositories["owner/tiny"].commits[MAIN]
    config = (folder / "config.json").read_text()
    try:
        (folder / "config.json").write_text(config.replace("LlamaForCausalLM", "GPT2LMHeadModel"))
        (error,) = fetch.errors("owner/tiny")
    finally:
        (folder / "config.json").write_text(config)
    assert "the architecture 'GPT2LMHeadModel' is not supported" in error
    assert "model.safetensors" not in hub.fetched()


def test_a_file_of_another_kind_is_refused_without_the_hub(hub: Hub, fetch: Fetcher) -> None:
    errors = fetch.errors("owner/tiny:config.json", "owner/tiny:")
    assert errors == [
        "owner/tiny has no GGUF file 'config.json'; name one that ends in .gguf",
        "owner/tiny has no GGUF file ''; name one that ends in .gguf",
    ]
    assert hub.requests == []


ERRORS = [
    ("owner/nothing", "neither a path here nor a repository that {hub} shows you"),
    ("owner/private", "neither a path here nor a repository that {hub} shows you"),
    ("owner/gated", "owner/gated is gated: accept its terms at {hub}/owner/gated, and log in"),
    ("owner/tiny:model.gguf", "owner/tiny has no GGUF file 'model.gguf'"),
    ("owner/tiny@v9", "owner/tiny has no revision 'v9'; give one of its branches, tags or commits"),
    ("HF_TOKEN=hf_stranger", None),
    ("owner/private", "if it is private, log in with `hf auth login`, or set HF_TOKEN"),
    ("owner/gated", "owner/gated is gated: accept its terms at {hub}/owner/gated"),
    ("HF_TOKEN=hf_wrong", None),
    ("owner/tiny", "your token is not accepted: log in with `hf auth login`"),
]


def test_what_the_hub_refuses_is_one_line(hub: Hub, fetch: Fetcher) -> None:
    errors = fetch.errors(*(name for name, _ in ERRORS))
    for error, message in zip(errors, (message for _, message in ERRORS if message is not None), strict=True):
        assert message.format(hub=hub.url) in error
    assert "model.safetensors" not in hub.fetched()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HF_HUB_OFFLINE", "1", "cannot be asked for it (HF_HUB_OFFLINE is set)"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", "cannot be asked for it ([Errno 111] Connection refused)"),
    ],
)
def test_a_hub_that_cannot_be_asked_is_one_line(
    hub: Hub, fetch: Fetcher, variable: str, value: str, message: str
) -> None:
    (error,) = fetch.errors("owner/tiny", **{variable: value})
    assert message in error
    assert hub.requests == []


@pytest.mark.slow
def test_the_command_prints_that_line(hub: Hub, fetch: Fetcher, tmp_path: Path) -> None:
    done = fetch.command("build", "owner/tiny", "--revision", "v9", "--output", tmp_path / "engine")
    assert done.returncode == 1
    message = "owner/tiny has no revision 'v9'; give one of its branches, tags or commits"
    assert done.stderr == f"trtstream: {message}\n"


def test_a_hub_that_is_down_is_one_line(hub: Hub, fetch: Fetcher) -> None:
    hub.down = True
    (line,) = fetch.errors("owner/tiny")
    assert "503 Service Unavailable" in line


@pytest.mark.slow
def test_a_repository_without_safetensors(hub: Hub, fetch: Fetcher, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    hub.repositories["owner/pickles"] = Repository({"main": MAIN}, {MAIN: folder})
    (line,) = fetch.errors("owner/pickles")
    assert "owner/pickles has no config.json" in line
    tiny = hub.repositories["owner/tiny"].commits[MAIN]
    (folder / "config.json").write_text((tiny / "config.json").read_text())
    hub.repositories["owner/pickles"] = Repository({"main": OLD}, {OLD: folder})
    (line,) = fetch.errors("owner/pickles")
    assert "owner/pickles has no model.safetensors, and pickles (.bin) are not read" in line


def test_a_disk_that_is_too_small_is_one_line_before_anything_is_written(
    hub: Hub, fetch: Fetcher, tmp_path: Path
) -> None:
    hub.sizes["model.safetensors"] = 10**18
    (line,) = fetch.errors("owner/tiny")
    assert f"owner/tiny takes 1000000000.00 GB in {tmp_path / 'home' / 'hub'}, and " in line
    assert "model.safetensors" not in hub.fetched()


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_line(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    command = [sys.executable, "-c", FETCH, "owner/tiny"]
    done = subprocess.run(command, env=environment, preexec_fn=small_files, capture_output=True, text=True)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert f"owner/tiny cannot be kept in {tmp_path / 'home' / 'hub'} (File too large)" in line
    assert "set HF_HOME to a folder on a larger disk" in line
