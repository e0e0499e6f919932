"""Checkpoints: a Hugging Face folder or a .gguf file, checked up front and read one tensor at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from trtstream.build.families.family import Family, Layout
from trtstream.build.families.raw_config import RawConfig
from trtstream.build.gguf_file import GgufFile
from trtstream.build.huggingface_folder import HuggingFaceFolder
from trtstream.build.recipes import NOT_WEIGHTS, Recipes
from trtstream.build.tokenizer import turn_ends
from trtstream.checksum import file_sha256
from trtstream.engine_dir import is_engine, is_model_repository
from trtstream.errors import TrtstreamError, named_errors
from trtstream.settings import ModelConfig
from trtstream.typed_json import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMED_AT_MOST = 5


class Store(Protocol):
    """A checkpoint on disk: its config in Hugging Face's spelling, and its tensors by their own names."""

    path: Path
    layout: Layout
    family: Family
    config: RawConfig
    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]
    """All that it computes with, weights and tokenizer, under names that do not depend on where the checkpoint is."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in floating point."""

    def block_format(self, name: str) -> str | None:
        """A tensor's name in `BLOCK_FORMATS`, if it is stored in one of them."""

    def read_blocks(self, name: str) -> torch.Tensor:
        """Such a tensor's rows as they are stored: uint8 [rows, bytes of a row]."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The checkpoint's tokenizer, loaded once; None if it has none."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Opening has checked that every tensor is there and has the shape that ``model`` asks for.

    The canonical tensor names and shapes are in `trtstream.build.recipes`.
    """

    model: ModelConfig
    recipes: Recipes
    store: Store

    def tensor_names(self) -> list[str]:
        return list(self.recipes)

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor: in the dtype it is stored in, or float32 where it is stored quantized."""
        recipe = self.recipes[name]
        return recipe.make([self.store.read(source) for source in recipe.sources])

    def blank_tensor(self, name: str) -> torch.Tensor:
        """A tensor of that shape without contents, on torch's meta device: nothing is read."""
        recipe = self.recipes[name]
        return recipe.make([torch.empty(shape, device="meta") for shape in recipe.sources.values()])

    def block_format(self, name: str) -> str | None:
        """The one of `BLOCK_FORMATS` in which all that makes up a tensor is stored, if there is one."""
        formats = {self.store.block_format(source) for source in self.recipes[name].sources}
        return formats.pop() if len(formats) == 1 else None

    def blocks(self, name: str) -> torch.Tensor:
        """Read one tensor that has a `block_format`, in the stored bits: uint8 [rows, bytes of a row].

        Recipes move whole rows only.
        """
        recipe = self.recipes[name]
        return recipe.make([self.store.read_blocks(source) for source in recipe.sources])

    def fingerprint(self) -> str:
        """The SHA-256 of the checkpoint's weights, config and tokenizer, in hexadecimal digits; reads all files."""
        digest = hashlib.sha256()
        for name, path in sorted(self.store.files.items()):
            digest.update(f"{name} {file_sha256(path)}\n".encode())
        return digest.hexdigest()

    def save_tokenizer(self, folder: Path) -> bool:
        """Write the tokenizer, chat template included, for ``AutoTokenizer.from_pretrained(folder)``.

        False, with nothing written, if the checkpoint has none: its engine serves token ids only. Raises TrtstreamError
        for one that cannot be written, such as a chat template with a lone surrogate.
        """
        if self.store.tokenizer is None:
            return False
        with named_errors(f"the tokenizer of {self.store.path} cannot be saved", "fix its tokenizer files"):
            self.store.tokenizer.save_pretrained(folder)
        return True


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face folder (config.json and safetensors) or a .gguf file; reads headers and the tokenizer.

    Raises TrtstreamError, which names the thing, for whatever cannot be read or computed correctly.
    """
    path = Path(path)
    if is_engine(path):
        raise TrtstreamError(f"{path} is an engine, built already; give the checkpoint that it was built from")
    if is_model_repository(path):
        raise TrtstreamError(f"{path} is a Triton model repository; give a checkpoint, or `trtstream serve` it")
    if path.is_dir():
        store: Store = HuggingFaceFolder(path)
    elif path.is_file() and path.suffix.lower() == ".gguf":
        store = GgufFile(path)
    elif path.exists():
        raise TrtstreamError(f"{path} is not a checkpoint; give a Hugging Face folder or a .gguf file")
    else:
        raise TrtstreamError(
            f"{path} does not exist; give the path of a Hugging Face folder or of a .gguf file, or owner/name of a "
            "repository on the Hugging Face hub"
        )
    family = store.family
    model = family.read_model(store.config)
    # Before the tokenizer: transformers reads the config for it too, and may make a list of all layers.
    if model.num_hidden_layers > len(store.shapes):
        raise store.config.error(
            f"{model.num_hidden_layers} layers are promised, but the checkpoint has only {len(store.shapes)} tensors"
        )
    if store.tokenizer is not None:
        ends = (*model.eos_token_ids, *turn_ends(store.tokenizer, path))
        known = dict.fromkeys(token for token in ends if token < model.vocab_size)
        model = replace(model, eos_token_ids=tuple(known))
    recipes = family.recipes(store.config, model, store.layout)
    duplicate = _duplicate_lm_head(model, recipes, store)
    if duplicate is False:
        model = replace(model, tie_word_embeddings=False)
        recipes = family.recipes(store.config, model, store.layout)
    _check_tensors(path, model, recipes, store, known={"lm_head.weight"} if duplicate else set())
    return Checkpoint(model, recipes, store)


def _duplicate_lm_head(model: ModelConfig, recipes: Recipes, store: Store) -> bool | None:
    """Whether a tied model's checkpoint repeats its embedding as ``lm_head.weight`` (None: it has none, or is untied).

    Where the two differ, the config is wrong and the model is not tied, which is how transformers loads it too.
    """
    (embedding,) = recipes["embedding.weight"].sources
    if not model.tie_word_embeddings or not {"lm_head.weight", embedding} <= set(store.shapes):
        return None
    return torch.equal(store.read("lm_head.weight"), store.read(embedding))


def _check_tensors(path: Path, model: ModelConfig, recipes: Recipes, store: Store, known: set[str]) -> None:
    expected = {name: shape for recipe in recipes.values() for name, shape in recipe.sources.items()}
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in store.shapes]
    if missing:
        raise TrtstreamError(f"{path} lacks {_some(missing)}; fetch or save the checkpoint again")
    misshapen = [
        f"{name} is {shown(list(store.shapes[name]))}, expected {list(shape)}"
        for name, shape in expected.items()
        if store.shapes[name] != shape
    ]
    if misshapen:
        raise TrtstreamError(f"{path} does not fit its config: {_some(misshapen)}; fetch or save the checkpoint again")
    extra = [
        name for name in store.shapes if name not in expected and name not in known and not NOT_WEIGHTS.search(name)
    ]
    if extra:
        raise TrtstreamError(
            f"{path} has tensors that this {model.architecture} has no use for: {_some([*map(shown, extra)])}; "
            "it computes something else, or its config is wrong"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more
