"""A Hugging Face checkpoint folder: config.json, generation_config.json, safetensors (sharded or not), a tokenizer."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from trtstream.build import tokenizer
from trtstream.build.families import find_family
from trtstream.build.families.family import Layout
from trtstream.build.families.raw_config import RawConfig
from trtstream.build.recipes import NOT_WEIGHTS
from trtstream.errors import TrtstreamError, one_line
from trtstream.typed_json import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = ("F64", "F32", "F16", "BF16")


class HuggingFaceFolder:
    layout: Layout = "huggingface"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)
        self.family = find_family(self.config)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        self._index: dict[str, str] = {}
        for file in self._find_files():
            self._read_header(file)
        weights = set(self._files.values())
        others = (path / name for name in ("config.json", *tokenizer.SAVED))
        self.files = {file.name: file for file in (*weights, *others) if file.is_file()}

    def block_format(self, name: str) -> None:
        """No format of safetensors is one."""

    def read_blocks(self, name: str) -> torch.Tensor:
        raise NotImplementedError(name)

    def read(self, name: str) -> torch.Tensor:
        # Opened each time: every page that was read stays resident while its file is open.
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return tokenizer.load_from_folder(self.path)

    def _find_files(self) -> list[Path]:
        index, single = self.path / INDEX, self.path / SINGLE
        if index.is_file():
            self._index = read_index(index)
            names = sorted(set(self._index.values()))
            shards = [self.path / name for name in names]
            missing = [name for name in names if not os.path.isfile(self.path / name)]  # of whatever length
            if single in shards or not single.is_file():
                if missing:
                    raise TrtstreamError(
                        f"{self.path} lacks {shown(missing[0])}, which {INDEX} names; fetch the checkpoint again"
                    )
                return shards
            if len(missing) < len(shards):
                raise TrtstreamError(
                    f"{self.path} has both {SINGLE} and shards that {INDEX} names, which may be different weights; "
                    f"remove {INDEX} to read {SINGLE}, or move {SINGLE} away to read the shards"
                )
            self._index = {}  # it is left over from shards that are gone; transformers reads the single file too
        if single.is_file():
            return [single]
        if next(self.path.glob("*.safetensors"), None):
            raise TrtstreamError(f"{self.path} has safetensors, but neither {SINGLE} nor {INDEX}; add the index")
        if next(self.path.glob("*.bin"), None):
            raise TrtstreamError(
                f"{self.path} has only .bin files, which are pickles and are not read; load it with transformers' "
                "AutoModelForCausalLM.from_pretrained and save it again with save_pretrained"
            )
        raise TrtstreamError(f"{self.path} has no {SINGLE}; fetch the checkpoint again")

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if self._index.get(name, path.name) != path.name:
                        continue  # the index assigns it to another shard, which overrides this one
                    tensor = file.get_slice(name)
                    if name in self._files:
                        raise TrtstreamError(
                            f"{path.parent}: {shown(name)} is in both {self._files[name].name} and {path.name}"
                        )
                    if (dtype := tensor.get_dtype()) not in DTYPES and not NOT_WEIGHTS.search(name):
                        raise TrtstreamError(
                            f"{path}: {shown(name)} is stored as {dtype}; expected one of {', '.join(DTYPES)}: "
                            "use the original, unquantized checkpoint"
                        )
                    self.shapes[name] = tuple(tensor.get_shape())
                    self._files[name] = path
        except (SafetensorError, OSError) as error:
            raise TrtstreamError(f"{path} is damaged or incomplete ({one_line(error)}); fetch it again") from error


def read_config(folder: Path) -> RawConfig:
    """The folder's config.json and generation_config.json. Raises TrtstreamError if they cannot be read."""
    if not (folder / "config.json").is_file():
        raise TrtstreamError(f"{folder} has no config.json; give a folder as transformers' save_pretrained writes it")
    values = _read_json(folder / "config.json")
    if (folder / "generation_config.json").is_file():
        generation = _read_json(folder / "generation_config.json")
        if generation.get("bos_token_id") is not None:
            values["bos_token_id"] = generation["bos_token_id"]
        # Chat models list their end-of-turn tokens in either file.
        ends = [end for names in (generation, values) for end in _as_list(names.get("eos_token_id"))]
        values |= {"eos_token_id": ends} if ends else {}
    return RawConfig(str(folder / "config.json"), values)


def read_index(index: Path) -> dict[str, str]:
    """The safetensors file of each tensor, as an index assigns them."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise TrtstreamError(f"{index} has no weight_map; fetch the checkpoint again")
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise TrtstreamError(f"{index} names the shard {shown(shard)}, which is outside its folder")
    return weight_map


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TrtstreamError(f"{path} is not JSON ({one_line(error)}); fetch it again") from error
    except OSError as error:
        raise TrtstreamError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(values, dict):
        raise TrtstreamError(f"{path} holds no JSON object; fetch it again")
    return values
