"""``trtstream package``: puts an engine into a Triton model repository as a model."""

from __future__ import annotations

import json
import re
import shutil
import string
import tempfile
from collections.abc import Mapping
from pathlib import Path

import click

from trtstream.engine_dir import EngineConfig, directory_bytes, link_or_copy, read_engine
from trtstream.errors import TrtstreamError
from trtstream.runtime.request_fields import INPUTS, OUTPUTS, Field
from trtstream.targets import TARGETS

TEMPLATE = Path(__file__).parents[2] / "model_repo" / "trtstream"
DEFAULT_MODEL_NAME = "trtstream"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="The model repository to write or add to."
)
@click.option("--model-name", help=f"The model's name in Triton.  [default: {DEFAULT_MODEL_NAME}]")
def package(engine: Path, output: Path, model_name: str | None) -> None:
    """Put ENGINE as a model into the Triton model repository --output.

    The repository can be moved. A Triton that serves it needs a python3 on PATH that has trtstream (docs/service.md).
    Engine files are hard links where the file system allows it, so that they take no extra space.
    """
    model = package_engine(engine, output, model_name)
    click.echo(f"{model}: {directory_bytes(model):,} bytes; serve it with `trtstream serve {output}`")


def package_engine(engine: Path, output: Path, model_name: str | None = None) -> Path:
    """Add an engine to the model repository ``output`` atomically; returns the folder that was written.

    That is the model's folder ``output/model_name``. Models of the tensorrt-llm target have fixed names: there it is
    ``output`` itself. Raises TrtstreamError if ``engine`` is not an engine, or if ``output`` already
    has that model or is not a repository.
    """
    config = read_engine(engine)
    output, engine = output.resolve(), engine.resolve()
    if output == engine or engine in output.parents:
        raise TrtstreamError(f"{output} is inside the engine {engine}; choose an --output outside it")
    model: Path = TARGETS[config.target].package(engine, config, output, model_name)
    return model


def package_model(engine: Path, config: EngineConfig, output: Path, model_name: str | None) -> Path:
    """`package_engine` for the targets of trtstream's own model; ``model_name`` None is `DEFAULT_MODEL_NAME`."""
    model_name = DEFAULT_MODEL_NAME if model_name is None else model_name
    if not MODEL_NAME.fullmatch(model_name):
        raise TrtstreamError(
            f"--model-name is {model_name!r}; use up to 128 letters, digits, '_', '-' and '.', beginning with a letter "
            "or a digit"
        )
    model = output / model_name
    if output.exists() and model_name in model_names(output):
        raise TrtstreamError(f"{model} exists already; remove it or choose another --model-name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Next to the repository, not in it: Triton takes every folder there for a model, hidden ones too.
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as work:
            new = Path(work, model_name)
            write_model(new, model_name, config, engine_dir="1/engine")
            shutil.copytree(engine, new / "1" / "engine", copy_function=link_or_copy)
            output.mkdir(exist_ok=True)
            new.rename(model)
    except (OSError, shutil.Error) as error:
        raise TrtstreamError(f"cannot write {model}: {error}") from error
    return model


def write_model(folder: Path, model_name: str, config: EngineConfig, engine_dir: str) -> None:
    """Write a model's config.pbtxt and model.py; ``engine_dir`` is absolute, or relative to ``folder``."""
    template = string.Template((TEMPLATE / "config.pbtxt").read_text())
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(
        template.substitute(
            model_name=model_name,
            inputs=_tensors(INPUTS, " optional: true"),
            outputs=_tensors(OUTPUTS),
            engine_dir=json.dumps(engine_dir, ensure_ascii=False),
            vocab_size=config.pretrained_config.vocab_size,
            max_attention_window=config.build_config.max_attention_window,
            sink_token_length=config.build_config.sink_token_length,
        )
    )
    shutil.copyfile(TEMPLATE / "1" / "model.py", folder / "1" / "model.py")


def _tensors(fields: Mapping[str, Field], more: str = "") -> str:
    """The tensors of config.pbtxt's input or output list."""
    return ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_{field.datatype.replace("BYTES", "STRING")} '
        f"dims: [ {-1 if field.vector else 1} ]{more} }}"
        for name, field in fields.items()
    )


def model_names(repository: Path) -> list[str]:
    """The models of a repository, sorted. Raises TrtstreamError if it has a folder that is not a model."""
    try:
        folders = sorted(entry for entry in repository.iterdir() if entry.is_dir())
    except OSError as error:
        raise TrtstreamError(f"{repository} is not a model repository: {error.strerror}") from error
    if (repository / "config.pbtxt").is_file():
        raise TrtstreamError(f"{repository} is a model and not a repository of models; give {repository.parent}")
    for folder in folders:
        if not (folder / "config.pbtxt").is_file():
            raise TrtstreamError(
                f"{repository} is not a Triton model repository: {folder.name} has no config.pbtxt; move it elsewhere"
            )
    return [folder.name for folder in folders]
