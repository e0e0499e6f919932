"""Checkpoints of a Hugging Face hub: the real huggingface_hub against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.command_line import run_in_process
from tests.hub_server import Hub, Repository, serve
from tests.runtime.clients import BOS, EOS, byte_tokenizer

pytestmark = pytest.mark.process

MAIN, OLD = "a" * 40, "b" * 40
SMALL = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
FETCH = """
import os, sys
from trtstream.build.hub import local_checkpoint
from trtstream.errors import TrtstreamError
for argument in sys.argv[1:]:
    if argument.startswith("HF_TOKEN="):  # the only variable that huggingface_hub reads whenever it needs it
        os.environ["HF_TOKEN"] = argument.removeprefix("HF_TOKEN=")
        continue
    name, _, revision = argument.partition("@")
    try:
        print("path", local_checkpoint(name, revision or None))
    except TrtstreamError as error:
        print("error", error)
"""


# Importing torch takes most of a process's time; huggingface_hub reads its environment when it is imported.
FORK = (
    """
import json, os, sys
import trtstream.build.huggingface_folder
assert "torch" in sys.modules and "huggingface_hub" not in sys.modules
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        sys.argv[1:], environment, folder, stdout, stderr = json.loads(line)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        for number, path in ((1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    sys.exit()
"""
    + """
if sys.argv[1] == "trtstream":
    del sys.argv[1]
    from trtstream.__main__ import main
    sys.exit(main())
"""
    + FETCH
)


@pytest.fixture(scope="module")
def with_torch() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported torch, of which others are forked that fetch or are a command."""
    command = [sys.executable, "-c", FORK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


@dataclass(frozen=True)
class Fetcher:
    """Fetches ``NAME`` or ``NAME@REVISION``, several in one new process.

    ``HF_TOKEN=TOKEN`` among the names is for those behind it; ``variables`` are for all.
    """

    with_torch: subprocess.Popen[str]
    environment: dict[str, str]
    folder: Path

    def run(self, *names: str, **variables: str) -> subprocess.CompletedProcess[str]:
        done = self._fork(names, variables)
        assert done.returncode == 0, done.stderr
        return done

    def _fork(self, arguments: Sequence[object], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        outputs = [self.folder / "stdout", self.folder / "stderr"]
        request = [arguments, {**self.environment, **variables}, self.folder, *outputs]
        assert self.with_torch.stdin
        assert self.with_torch.stdout
        print(json.dumps(request, default=str), file=self.with_torch.stdin, flush=True)
        status = int(self.with_torch.stdout.readline())
        stdout, stderr = (path.read_text() for path in outputs)
        return subprocess.CompletedProcess(arguments, status, stdout, stderr)

    def command(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """``trtstream`` with arguments."""
        return self._fork(["trtstream", *arguments], variables)

    def paths(self, *names: str, **variables: str) -> list[Path]:
        """The paths of what is fetched."""
        lines = self.run(*names, **variables).stdout.splitlines()
        assert all(line.startswith("path ") for line in lines), lines
        return [Path(line.removeprefix("path ")) for line in lines]

    def errors(self, *names: str, **variables: str) -> list[str]:
        """The refusals, each of one line; nothing else is printed."""
        done = self.run(*names, **variables)
        lines = done.stdout.splitlines()
        assert len(lines) == sum(not name.startswith("HF_TOKEN=") for name in names)
        assert all(line.startswith("error ") for line in lines), lines
        assert done.stderr == ""
        return [line.removeprefix("error ") for line in lines]


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
def test_a_token_opens_them(fetch: Fetcher, environment: dict[str, str]) -> None:
    """In HF_TOKEN, or where `hf auth login` keeps it."""
    names = ("owner/private", "owner/gated")
    assert all(path.is_dir() for path in fetch.paths(*names, HF_TOKEN="hf_reader"))
    home = Path(environment["HF_HOME"], "other")
    home.mkdir()
    (home / "token").write_text("hf_reader")
    assert all(path.is_relative_to(home) for path in fetch.paths(*names, HF_HOME=str(home)))


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
