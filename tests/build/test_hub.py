"""Checkpoints of a Hugging Face hub: the real huggingface_hub against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.hub_server import Hub, Repository, serve
from tests.runtime.clients import BOS, EOS, byte_tokenizer

pytestmark = pytest.mark.process

MAIN, OLD = "a" * 40, "b" * 40
SMALL = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
FETCH = """
import sys
from trtstream.build.hub import local_checkpoint
from trtstream.errors import TrtstreamError
try:
    print(local_checkpoint(*sys.argv[1:]))
except TrtstreamError as error:
    sys.exit(str(error))
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny`` and ``other`` in one file, ``sharded`` in several; with what nobody needs beside the checkpoint."""
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
    (root / "sharded" / "model.safetensors").write_bytes(b"the same weights again")
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
def fetch(environment: dict[str, str], tmp_path: Path) -> Run:
    """``fetch(NAME, [REVISION])``: in a process of its own, as huggingface_hub reads its environment when imported."""

    def fetch(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", FETCH, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env={**environment, **variables}, capture_output=True, text=True, timeout=120
        )

    return fetch


def trtstream(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trtstream", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_an_engine_of_a_repository(hub: Hub, environment: dict[str, str], checkpoints: Path, tmp_path: Path) -> None:
    """Is that of the same files in a folder, and is built again without the hub."""
    engines = [tmp_path / name for name in ("online", "offline", "folder")]
    sources = ("owner/tiny", "owner/tiny", checkpoints / "tiny")
    for engine, source, offline in zip(engines, sources, "010", strict=True):
        done = trtstream({**environment, "HF_HUB_OFFLINE": offline}, "build", source, "--output", engine)
        assert done.returncode == 0, done.stderr
        assert "no tokenizer" not in done.stderr
    files = [json.loads((engine / "config.json").read_text())["files"] for engine in engines]
    weights = [file["rank0.safetensors"] for file in files]
    assert weights[0] == weights[1] == weights[2]


def test_an_evaluation_of_a_repository(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text " * 20)
    outputs = ("--text", tmp_path / "text.txt", "--json", tmp_path / "report.json")
    done = trtstream(environment, "eval", "owner/tiny", "--revision", "v1", *outputs)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["checkpoint"] == "tiny"


def test_only_what_is_read_is_fetched(hub: Hub, fetch: Run, checkpoints: Path) -> None:
    folder = Path(fetch("owner/tiny").stdout.strip())
    assert sorted(file.name for file in folder.iterdir()) == sorted(["model.safetensors", *SMALL])
    assert (folder / "model.safetensors").read_bytes() == (checkpoints / "tiny" / "model.safetensors").read_bytes()
    assert hub.fetched() == sorted(["model.safetensors", *SMALL])

    hub.requests.clear()
    assert Path(fetch("owner/tiny").stdout.strip()) == folder
    assert hub.fetched() == []


def test_the_shards_of_the_index(hub: Hub, fetch: Run, checkpoints: Path) -> None:
    folder = Path(fetch("owner/sharded").stdout.strip())
    shards = sorted(path.name for path in (checkpoints / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert sorted(path.name for path in folder.glob("*.safetensors")) == shards


@pytest.mark.parametrize(("revision", "commit", "source"), [("v1", OLD, "other"), (MAIN, MAIN, "tiny")])
def test_a_revision(fetch: Run, checkpoints: Path, revision: str, commit: str, source: str) -> None:
    folder = Path(fetch("owner/tiny", revision).stdout.strip())
    assert folder.name == commit
    assert (folder / "model.safetensors").read_bytes() == (checkpoints / source / "model.safetensors").read_bytes()


def test_a_path_is_never_looked_up(hub: Hub, fetch: Run, tmp_path: Path) -> None:
    """One that exists, and whatever does not look like a repository id."""
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    names = ("./owner/gated", "../owner/gated", "/owner/gated", "~/gated", "owner/gated.gguf", "gated", "owner/a/gated")
    for name in ("owner/tiny", *names, "owner/a--gated"):
        assert fetch(name).stdout.strip() == str(Path(name))
    assert hub.requests == []


def test_a_revision_of_a_path_is_refused(environment: dict[str, str], checkpoints: Path, tmp_path: Path) -> None:
    arguments = (checkpoints / "tiny", "--revision", "v1", "--output", tmp_path / "engine")
    done = trtstream(environment, "build", *arguments)
    assert done.returncode == 2
    assert "--revision is for a repository on the Hugging Face hub" in done.stderr


def test_a_family_that_is_not_supported_is_refused_before_its_weights_are_fetched(hub: Hub, fetch: Run) -> None:
    folder = hub.repositories["owner/tiny"].commits[MAIN]
    config = (folder / "config.json").read_text()
    try:
        (folder / "config.json").write_text(config.replace("LlamaForCausalLM", "GPT2LMHeadModel"))
        done = fetch("owner/tiny")
    finally:
        (folder / "config.json").write_text(config)
    assert "the architecture 'GPT2LMHeadModel' is not supported" in done.stderr
    assert "model.safetensors" not in hub.fetched()


def test_a_gguf_file_whose_download_is_interrupted(hub: Hub, fetch: Run, tmp_path: Path) -> None:
    """It is resumed where it was cut, the second half of it."""
    contents = os.urandom(25_000_000)
    (tmp_path / "repository" / "small").mkdir(parents=True)
    (tmp_path / "repository" / "model.Q4_0.gguf").write_bytes(contents)
    hub.repositories["owner/gguf"] = Repository({"main": MAIN}, {MAIN: tmp_path / "repository"})
    hub.cut_after = 15_000_000
    done = fetch("owner/gguf:model.Q4_0.gguf")
    path = Path(done.stdout.strip())
    assert path.name == "model.Q4_0.gguf"
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(contents).digest()
    assert hub.cut_after is None
    (resumed,) = hub.ranges
    assert int(resumed.removeprefix("bytes=").rstrip("-")) >= 10_000_000
    assert "Fetching MB: 10 of 25" in done.stderr
    assert "Fetching MB: 25 of 25" in done.stderr


ERRORS = [
    ("owner/nothing", {}, "neither a path here nor a repository that {hub} shows you"),
    ("owner/private", {}, "neither a path here nor a repository that {hub} shows you"),
    ("owner/private", {"HF_TOKEN": "hf_stranger"}, "if it is private, log in with `hf auth login`, or set HF_TOKEN"),
    ("owner/gated", {}, "owner/gated is gated: accept its terms at {hub}/owner/gated, and log in"),
    ("owner/gated", {"HF_TOKEN": "hf_stranger"}, "owner/gated is gated: accept its terms at {hub}/owner/gated"),
    (
        "owner/tiny",
        {"HF_TOKEN": "hf_wrong"},
        "your token is not accepted: log in with `hf auth login`",
    ),
    ("owner/tiny", {"HF_HUB_OFFLINE": "1"}, "cannot be asked for it (HF_HUB_OFFLINE is set)"),
    ("owner/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be asked for it ([Errno 111] Connection refused)"),
    ("owner/tiny:model.gguf", {}, "owner/tiny has no GGUF file 'model.gguf'"),
    ("owner/tiny:config.json", {}, "owner/tiny has no GGUF file 'config.json'"),
]


@pytest.mark.parametrize(("name", "variables", "message"), ERRORS)
def test_what_the_hub_refuses_is_one_line(
    hub: Hub, fetch: Run, name: str, variables: dict[str, str], message: str
) -> None:
    done = fetch(name, **variables)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert message.format(hub=hub.url) in line
    assert "model.safetensors" not in hub.fetched()


def test_the_command_prints_that_line(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    done = trtstream(environment, "build", "owner/tiny", "--revision", "v9", "--output", tmp_path / "engine")
    assert done.returncode == 1
    message = "owner/tiny has no revision 'v9'; give one of its branches, tags or commits"
    assert done.stderr == f"trtstream: {message}\n"


def test_a_hub_that_is_down_is_one_line(hub: Hub, fetch: Run) -> None:
    hub.down = True
    (line,) = fetch("owner/tiny").stderr.splitlines()
    assert "503 Service Unavailable" in line


@pytest.mark.parametrize("repository", ["owner/private", "owner/gated"])
def test_a_token_opens_them(fetch: Run, environment: dict[str, str], repository: str) -> None:
    """In HF_TOKEN, or where `hf auth login` keeps it."""
    assert Path(fetch(repository, HF_TOKEN="hf_reader").stdout.strip()).is_dir()
    home = Path(environment["HF_HOME"], "other")
    home.mkdir()
    (home / "token").write_text("hf_reader")
    assert Path(fetch(repository, HF_HOME=str(home)).stdout.strip()).is_relative_to(home)


def test_a_repository_without_safetensors(hub: Hub, fetch: Run, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    hub.repositories["owner/pickles"] = Repository({"main": MAIN}, {MAIN: folder})
    assert "owner/pickles has no config.json" in fetch("owner/pickles").stderr
    tiny = hub.repositories["owner/tiny"].commits[MAIN]
    (folder / "config.json").write_text((tiny / "config.json").read_text())
    hub.repositories["owner/pickles"] = Repository({"main": OLD}, {OLD: folder})
    (line,) = fetch("owner/pickles").stderr.splitlines()
    assert "owner/pickles has no model.safetensors, and pickles (.bin) are not read" in line


def test_a_disk_that_is_too_small_is_one_line_before_anything_is_written(hub: Hub, fetch: Run, tmp_path: Path) -> None:
    hub.sizes["model.safetensors"] = 10**18
    (line,) = fetch("owner/tiny").stderr.splitlines()
    assert f"owner/tiny takes 1000000000.00 GB in {tmp_path / 'home' / 'hub'}, and " in line
    assert "model.safetensors" not in hub.fetched()


def test_a_disk_that_fills_up_is_one_line(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    command = [sys.executable, "-c", FETCH, "owner/tiny"]
    done = subprocess.run(command, env=environment, preexec_fn=small_files, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert f"owner/tiny cannot be kept in {tmp_path / 'home' / 'hub'} (File too large)" in line
    assert "set HF_HOME to a folder on a larger disk" in line
