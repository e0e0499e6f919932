"""``trtstream package``: it writes, atomically, a repository that Triton can read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from trtstream.deploy.serving.package import package, package_engine, write_model
from trtstream.engine_dir import read_engine
from trtstream.errors import TrtstreamError
from trtstream.runtime.request_fields import INPUTS, OUTPUTS


def read_config(model: Path) -> ModelConfig:
    return text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())


def datatype(number: int) -> str:
    return DataType.Name(number).removeprefix("TYPE_").replace("STRING", "BYTES")


def test_a_packaged_model(engine: Path, tmp_path: Path) -> None:
    repository = tmp_path / "new" / "repository"
    result = CliRunner().invoke(package, [str(engine), "--output", str(repository)])
    assert result.exit_code == 0, result.output
    assert f"{repository / 'trtstream'}: " in result.stdout
    assert "bytes" in result.stdout
    model = repository / "trtstream"
    config = read_config(model)
    assert config.name == "trtstream"
    assert config.model_transaction_policy.decoupled
    for tensors, fields in ((config.input, INPUTS), (config.output, OUTPUTS)):
        found = {tensor.name: (datatype(tensor.data_type), list(tensor.dims)) for tensor in tensors}
        assert found == {name: (field.datatype, [-1 if field.vector else 1]) for name, field in fields.items()}
    assert all(tensor.optional for tensor in config.input)
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    assert parameters == {
        "engine_dir": "1/engine",
        "vocab_size": "128",
        "max_attention_window": "64",
        "sink_token_length": "4",
    }
    assert read_engine(model / "1" / "engine") == read_engine(engine)
    assert not list(repository.rglob("__pycache__"))
    assert [entry.name for entry in repository.parent.iterdir()] == ["repository"]


def test_engine_files_are_linked_not_copied(engine: Path, tmp_path: Path) -> None:
    model = package_engine(engine, tmp_path / "repository")
    assert (model / "1/engine/config.json").stat().st_ino == (engine / "config.json").stat().st_ino
    for path in (model / "1" / "model.py", model / "config.pbtxt"):
        assert path.stat().st_nlink == 1  # those may be edited


def test_symbolic_links_become_files(engine: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(engine, tmp_path / "engine")
    (copy / "rank0.safetensors").rename(copy / "weights")
    (copy / "rank0.safetensors").symlink_to("weights")
    packaged = package_engine(copy, tmp_path / "repository") / "1" / "engine" / "rank0.safetensors"
    assert not packaged.is_symlink()
    assert packaged.read_bytes() == (engine / "rank0.safetensors").read_bytes()


def test_a_repository_takes_more_models(engine: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name in ("a", "b-2.0"):
        assert read_config(package_engine(engine, repository, name)).name == name
    with pytest.raises(TrtstreamError, match=r"b-2\.0 exists already; remove it or choose another --model-name"):
        package_engine(engine, repository, "b-2.0")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", ".hidden", "a b", 'a"', "ü", "a\n", "x" * 129])
def test_model_names_that_are_refused(engine: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(TrtstreamError, match="--model-name is"):
        package_engine(engine, tmp_path / "repository", name)
    assert not list(tmp_path.iterdir())


def test_other_folders_are_left_alone(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "home" / "photos").mkdir(parents=True)
    with pytest.raises(TrtstreamError, match=r"photos has no config\.pbtxt"):
        package_engine(engine, tmp_path / "home")
    (tmp_path / "file").touch()
    with pytest.raises(TrtstreamError, match="file is not a model repository: Not a directory"):
        package_engine(engine, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "home", "photos"]


def test_only_engines_are_packaged(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(TrtstreamError, match="is not an engine"):
        package_engine(tmp_path, tmp_path / "repository")
    copy = shutil.copytree(engine, tmp_path / "engine")
    with pytest.raises(TrtstreamError, match="inside the engine"):
        package_engine(copy, copy / "repository")


def test_a_folder_that_cannot_be_written(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrtstreamError, match="cannot write"):
        package_engine(engine, tmp_path / "file" / "repository")


def test_an_interrupted_copy_leaves_nothing(engine: Path, tmp_path: Path) -> None:
    """A file that vanishes half-way (here a dangling link) fails the package."""
    copy = shutil.copytree(engine, tmp_path / "engine")
    (copy / "dangling").symlink_to("nowhere")
    with pytest.raises(TrtstreamError, match="cannot write"):
        package_engine(copy, tmp_path / "repository")
    assert [entry.name for entry in tmp_path.iterdir()] == ["engine"]


def test_paths_with_quotes_survive_the_config(engine: Path, tmp_path: Path) -> None:
    path = '/a "quoted" \\ path/größer'
    write_model(tmp_path / "model", "model", read_engine(engine), path)
    assert read_config(tmp_path / "model").parameters["engine_dir"].string_value == path
