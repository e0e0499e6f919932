"""What is fetched from a Hugging Face hub: the real huggingface_hub against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.build.hub.fetcher import Fetcher
from tests.build.hub.server import MAIN, OLD, Hub, Repository
from tests.command_line import run_in_process

pytestmark = pytest.mark.process

SMALL = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.slow
def test_an_engine_of_a_repository(fetch: Fetcher, checkpoints: Path, tmp_path: Path) -> None:
    """Is that of the same files in a folder, and is built again without the hub."""
    engines = [tmp_path / name for name in ("online", "offline", "folder")]
    built = [
        fetch.command("build", "owner/tiny", "--output", engine, HF_HUB_OFFLINE=offline)
        for engine, offline in zip(engines, "01", strict=False)
    ]
    for done in (*built, run_in_process("build", checkpoints / "tiny", "--output", engines[2])):
        assert done.returncode == 0, done.stderr
        assert "no tokenizer" not in done.stderr
    files = [json.loads((engine / "config.json").read_text())["files"] for engine in engines]
    weights = [file["rank0.safetensors"] for file in files]
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.slow
def test_an_evaluation_of_a_repository(fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text " * 20)
    outputs = ("--text", tmp_path / "text.txt", "--json", tmp_path / "report.json")
    done = fetch.command("eval", "owner/tiny", "--revision", "v1", *outputs)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["checkpoint"] == "tiny"


def test_only_what_is_read_is_fetched(hub: Hub, fetch: Fetcher, checkpoints: Path) -> None:
    (folder,) = fetch.paths("owner/tiny")
    assert sorted(file.name for file in folder.iterdir()) == sorted(["model.safetensors", *SMALL])
    assert (folder / "model.safetensors").read_bytes() == (checkpoints / "tiny" / "model.safetensors").read_bytes()
    assert hub.fetched() == sorted(["model.safetensors", *SMALL])

    hub.requests.clear()
    assert fetch.paths("owner/tiny") == [folder]
    assert hub.fetched() == []


def test_the_shards_of_the_index(hub: Hub, fetch: Fetcher, checkpoints: Path) -> None:
    """All of them, once; they are there without the hub, too."""
    (folder,) = fetch.paths("owner/sharded")
    shards = sorted(path.name for path in (checkpoints / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert sorted(path.name for path in folder.glob("*.safetensors")) == shards
    assert fetch.paths("owner/sharded", HF_HUB_OFFLINE="1") == [folder]


def test_a_single_file_next_to_an_index(hub: Hub, fetch: Fetcher, checkpoints: Path, tmp_path: Path) -> None:
    """Is ambiguous next to its shards, which may be older, and is what there is without them."""
    both, single = tmp_path / "both", tmp_path / "single"
    for folder in (both, single):
        shutil.copytree(checkpoints / "sharded", folder)
        shutil.copy(checkpoints / "other" / "model.safetensors", folder)
    for shard in single.glob("model-*.safetensors"):
        shard.unlink()
    hub.repositories["owner/both"] = Repository({"main": MAIN}, {MAIN: both})
    hub.repositories["owner/single"] = Repository({"main": MAIN}, {MAIN: single})
    (error,) = fetch.errors("owner/both")
    assert "owner/both has both model.safetensors and shards that model.safetensors.index.json names" in error
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    (fetched,) = fetch.paths("owner/single")
    assert (fetched / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
    assert fetch.paths("owner/single", HF_HUB_OFFLINE="1") == [fetched]


def test_a_revision(fetch: Fetcher, checkpoints: Path) -> None:
    """A tag, or a commit."""
    folders = fetch.paths("owner/tiny@v1", f"owner/tiny@{MAIN}")
    for folder, commit, source in zip(folders, (OLD, MAIN), ("other", "tiny"), strict=True):
        assert folder.name == commit
        assert (folder / "model.safetensors").read_bytes() == (checkpoints / source / "model.safetensors").read_bytes()


def test_a_path_is_never_looked_up(hub: Hub, fetch: Fetcher, tmp_path: Path) -> None:
    """One that exists, and whatever does not look like a repository id."""
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    paths = ("./owner/gated", "../owner/gated", "/owner/gated", "~/gated", "owner/gated.gguf", "gated", "owner/a/gated")
    names = ("owner/tiny", *paths, "owner/a--gated")
    assert fetch.paths(*names) == [Path(name) for name in names]
    assert hub.requests == []


@pytest.mark.slow
def test_a_gguf_file_whose_download_is_interrupted(hub: Hub, fetch: Fetcher, tmp_path: Path) -> None:
    """It is resumed where it was cut, the second half of it."""
    contents = os.urandom(25_000_000)
    (tmp_path / "repository" / "small").mkdir(parents=True)
    (tmp_path / "repository" / "model.Q4_0.gguf").write_bytes(contents)
    hub.repositories["owner/gguf"] = Repository({"main": MAIN}, {MAIN: tmp_path / "repository"})
    hub.cut_after = 15_000_000
    done = fetch.run("owner/gguf:model.Q4_0.gguf")
    path = Path(done.stdout.strip().removeprefix("path "))
    assert path.name == "model.Q4_0.gguf"
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(contents).digest()
    assert hub.cut_after is None
    (resumed,) = hub.ranges
    assert int(resumed.removeprefix("bytes=").rstrip("-")) >= 10_000_000
    assert "Fetching MB: 10 of 25" in done.stderr
    assert "Fetching MB: 25 of 25" in done.stderr


@pytest.mark.slow
def test_the_name_of_a_gguf_file_is_not_a_pattern(hub: Hub, fetch: Fetcher, tmp_path: Path) -> None:
    names = ["model[1].gguf", "model1.gguf", "model?.gguf", "model2.gguf"]
    for name in names:
        (tmp_path / "repository").mkdir(exist_ok=True)
        (tmp_path / "repository" / name).write_text(name)
    hub.repositories["owner/gguf"] = Repository({"main": MAIN}, {MAIN: tmp_path / "repository"})
    wanted = ["model[1].gguf", "model?.gguf"]
    paths = fetch.paths(*(f"owner/gguf:{name}" for name in wanted))
    assert [path.read_text() for path in paths] == wanted
    assert hub.fetched() == sorted(wanted)
    (error,) = fetch.errors("owner/gguf:*.gguf")
    assert "owner/gguf has no GGUF file '*.gguf'; name one that it has" in error
    assert hub.fetched() == sorted(wanted)


@pytest.mark.slow
def test_a_token_opens_them(fetch: Fetcher, environment: dict[str, str]) -> None:
    """In HF_TOKEN, or where `hf auth login` keeps it."""
    names = ("owner/private", "owner/gated")
    assert all(path.is_dir() for path in fetch.paths(*names, HF_TOKEN="hf_reader"))
    home = Path(environment["HF_HOME"], "other")
    home.mkdir()
    (home / "token").write_text("hf_reader")
    assert all(path.is_relative_to(home) for path in fetch.paths(*names, HF_HOME=str(home)))
