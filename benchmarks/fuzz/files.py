"""Edited and damaged engines: each is refused in one line, or loads and computes.

An engine whose checksums were made to follow the edit may be another engine; all others compute what they did.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from benchmarks.fuzz.json_edits import edit_text, edit_values
from benchmarks.fuzz.report import Report
from trtstream.checksum import file_sha256
from trtstream.engine_dir import CONFIG, TOKENIZER, WEIGHTS, config_checksum
from trtstream.errors import TrtstreamError
from trtstream.runtime.loading import load_engine
from trtstream.runtime.prompt import first_prompt
from trtstream.runtime.requests import TurnRequest
from trtstream.runtime.tokenizer import load_tokenizer

TOKENS = [1, 2, 3, 5, 8]


@dataclass(frozen=True)
class Edit:
    """What was done to an engine, and whether its checksums follow it."""

    what: str
    sealed: bool


def fuzz_files(engine: Path, count: int, seed: int) -> Report:
    """Edit copies of ``engine``, ``count`` of them, and load each."""
    report, expected = Report(), _logits(engine)
    with tempfile.TemporaryDirectory() as work:
        for number in range(count):
            random = Random(f"{seed}/{number}")
            copy = Path(work, str(number), "engine")
            shutil.copytree(engine, copy)
            edit = random.choice(EDITS)(random, copy)
            name = f"edit {number} of seed {seed}: {edit.what}{', sealed' if edit.sealed else ''}"
            try:
                same = torch.equal(_logits(copy), expected)
                report.outcomes["loads and computes " + ("the same" if same else "something else, sealed")] += 1
                if not same and not edit.sealed:
                    report.faults.append(f"{name}: it computes something else")
            except TrtstreamError as error:
                report.outcomes["refused in one line"] += 1
                if not str(error).isprintable():
                    report.faults.append(f"{name}: not one line: {error!r}")
            except BaseException as error:  # a panic of Rust's is not an Exception
                if isinstance(error, KeyboardInterrupt):
                    raise
                report.outcomes["another exception"] += 1
                report.faults.append(f"{name}: {traceback.format_exc(limit=-4)}")
            shutil.rmtree(copy.parent)
    return report


def _logits(folder: Path) -> torch.Tensor:
    """A prompt's logits; the tokenizer is used too."""
    engine = load_engine(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if tokenizer is not None:
        request = TurnRequest(text="Hello", chat=tokenizer.chat_template is not None)
        tokenizer.decode(first_prompt(request, tokenizer, engine.build).token_ids)
    logits = engine.prefill(0, TOKENS)
    return torch.cat((logits.reshape(1, -1), engine.decode([0], [3]).reshape(1, -1)))


def _seal(folder: Path) -> None:
    """Make the checksums follow the files and the config, where it is still an object with ``files``."""
    config = json.loads((folder / CONFIG).read_text())
    for name in config["files"]:
        config["files"][name] = file_sha256(folder / name)
    config["checksum"] = config_checksum(config)
    (folder / CONFIG).write_text(json.dumps(config))


def _config(random: Random, folder: Path) -> Edit:
    config = json.loads((folder / CONFIG).read_text())
    what, sealed = edit_values(random, config), random.random() < 0.7
    if sealed:
        config["checksum"] = config_checksum(config)
    (folder / CONFIG).write_text(json.dumps(config))
    return Edit(f"{CONFIG}: {what}", sealed)


def _config_text(random: Random, folder: Path) -> Edit:
    path = folder / CONFIG
    path.write_bytes(edit_text(random, path.read_bytes()))
    return Edit(f"{CONFIG}: its text", False)


def _tokenizer(random: Random, folder: Path) -> Edit:
    path = random.choice(sorted((folder / TOKENIZER).glob("*.json")))
    values = json.loads(path.read_text())
    what = edit_values(random, values)
    for _ in range(random.randrange(2)):
        what += f", {edit_values(random, values)}"
    path.write_text(json.dumps(values))
    return _sealed(random, folder, f"{path.name}: {what}")


def _tokenizer_text(random: Random, folder: Path) -> Edit:
    path = random.choice(sorted(path for path in (folder / TOKENIZER).iterdir() if path.is_file()))
    path.write_bytes(edit_text(random, path.read_bytes()))
    return _sealed(random, folder, f"{path.name}: its text")


def _weights(random: Random, folder: Path) -> Edit:
    """The header of a safetensors file: eight bytes of length, then JSON."""
    path = folder / WEIGHTS
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.7:
        values = json.loads(header)
        what = edit_values(random, values)
        header = json.dumps(values).encode()
    else:
        what, header = "its header's text", edit_text(random, header)
    length = random.choice((len(header), len(header), len(header), len(header) + 1, 0, 2**63, 2**40))
    path.write_bytes(
        length.to_bytes(8, "little") + header + body[: random.choice((None, None, None, len(body) // 2, 0))]
    )
    return _sealed(random, folder, f"{WEIGHTS}: {what}")


def _contents(random: Random, folder: Path) -> Edit:
    """A flipped bit of any file, or its end cut off."""
    path = random.choice(_files(folder))
    data = bytearray(path.read_bytes())
    if random.random() < 0.5:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    else:
        del data[random.randrange(len(data)) :]
    path.write_bytes(data)
    return Edit(f"{path.name}: its bytes", False)


def _special(random: Random, folder: Path) -> Edit:
    """A file becomes something else, or something is added."""
    path = random.choice(_files(folder))
    outside = folder.parent / "outside"
    shutil.copyfile(path, outside)
    path.unlink()

    def link_inside() -> None:
        outside.rename(folder / "moved")
        path.symlink_to(folder / "moved")

    def add_fifo() -> None:
        outside.rename(path)
        os.mkfifo(folder / TOKENIZER / "merges.txt")

    def add_file() -> None:
        outside.rename(path)
        (folder / TOKENIZER / "added_tokens.json").write_text("{}")

    kinds: dict[str, Callable[[], None]] = {
        "removed": lambda: None,
        "empty": path.touch,
        "folder": path.mkdir,
        "FIFO": lambda: os.mkfifo(path),
        "link outside": lambda: path.symlink_to(outside),
        "link to itself": lambda: path.symlink_to(path.name),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "link to another file": lambda: path.symlink_to(os.path.relpath(folder / WEIGHTS, path.parent)),
        "link inside": link_inside,
        "a FIFO is added": add_fifo,
        "a file is added": add_file,
    }
    kind = random.choice(sorted(kinds))
    kinds[kind]()
    return Edit(f"{path.name}: {kind}", False)


def _sealed(random: Random, folder: Path, what: str) -> Edit:
    sealed = random.random() < 0.8
    if sealed:
        _seal(folder)
    return Edit(what, sealed)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


EDITS: tuple[Callable[[Random, Path], Edit], ...] = (
    _config,
    _config,
    _config_text,
    _tokenizer,
    _tokenizer_text,
    _weights,
    _contents,
    _special,
)
