"""A ``tensorrt-llm`` engine becomes the model repository that Triton's tensorrtllm backend and its clients know."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

from trtstream.engine_dir import TOKENIZER, EngineConfig, link_or_copy, new_directory
from trtstream.errors import TrtstreamError

TEMPLATES = Path(__file__).parents[2] / "model_repo" / "tensorrt_llm"
MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
WITH_TOKENIZER = ("preprocessing", "postprocessing")
BUILT = "engine"
"""The folder of trtllm-build's output, in an engine directory and in a version of the tensorrt_llm model."""

RENAMED_IN = (0, 20)  # between tensorrtllm_backend v0.19.0 and its commit c2e65b8 of 2025-05-13
OLD_NAMES = {"seed": "random_seed", "min_tokens": "min_length"}
NEW_NAMES = {"seed": "seed", "min_tokens": "min_tokens"}


def package_tensorrt_llm(engine: Path, config: EngineConfig, output: Path, model_name: str | None) -> Path:
    """Write the model repository ``output`` atomically; returns it.

    Raises TrtstreamError if a ``model_name`` is given, if the engine has not been built yet or has no tokenizer, or if
    there is something at ``output``.
    """
    if model_name is not None:
        raise TrtstreamError(
            f"--model-name is {model_name!r}; the models of Triton's tensorrtllm backend have fixed names: leave it out"
        )
    built = built_config(engine / BUILT)
    if built is None:
        raise TrtstreamError(
            f"{engine} holds a checkpoint and no engine yet: run {engine / 'build.sh'} where its TensorRT-LLM and a "
            "GPU are, then package it"
        )
    if not (engine / TOKENIZER).is_dir():
        raise TrtstreamError(
            f"{engine} has no tokenizer, which preprocessing needs; build it from a checkpoint with one"
        )
    values = _template_values(engine / TOKENIZER, config, built)
    with new_directory(output) as repository:
        for name in MODELS:
            shutil.copytree(TEMPLATES / name, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
            (repository / name / "1").mkdir(exist_ok=True)
            template = string.Template((TEMPLATES / name / "config.pbtxt").read_text())
            (repository / name / "config.pbtxt").write_text(template.substitute(values))
        for name in WITH_TOKENIZER:
            _write_tokenizer(engine / TOKENIZER, repository / name / "1" / TOKENIZER)
        shutil.copytree(engine / BUILT, repository / "tensorrt_llm" / "1" / BUILT, copy_function=link_or_copy)
    return output


def built_config(folder: Path) -> dict[str, Any] | None:
    """trtllm-build's config of the engine in ``folder``, or None if there is no engine with all its ranks."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TrtstreamError(f"{folder / 'config.json'} cannot be read ({error}); build the engine again") from error
    try:
        _, _, ranks = (
            config["version"],
            config["build_config"]["max_input_len"],
            config["pretrained_config"]["mapping"]["world_size"],
        )
    except (KeyError, TypeError) as error:
        raise TrtstreamError(f"{folder / 'config.json'} lacks {error}; build the engine with trtllm-build") from None
    return config if all((folder / f"rank{rank}.engine").is_file() for rank in range(ranks)) else None


def _template_values(tokenizer_folder: Path, config: EngineConfig, built: dict[str, Any]) -> dict[str, object]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    build, eos = config.build_config, config.pretrained_config.eos_token_ids
    end_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else (eos[0] if eos else -1)
    names = NEW_NAMES if tuple(map(int, built["version"].split(".")[:2])) >= RENAMED_IN else OLD_NAMES
    return {
        "max_batch_size": build.max_batch_size,
        "max_input_len": built["build_config"]["max_input_len"],
        "max_attention_window": build.max_attention_window,
        "sink_token_length": build.sink_token_length,
        "vocab_size": config.pretrained_config.vocab_size,
        "end_id": end_id,
        "more_end_ids": [end for end in eos if end != end_id],
        "bos_token": _quoted(tokenizer.bos_token),
        "eos_token": _quoted(tokenizer.eos_token),
        "chat_template": _quoted(tokenizer.get_chat_template() if tokenizer.chat_template else None),
        **names,
    }


def _quoted(text: str | None) -> str:
    return json.dumps(text or "", ensure_ascii=False)


def _write_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer; its merges as "a b", as every release's tokenizers reads them (before 0.20 not as pairs)."""
    shutil.copytree(source, target)
    path = target / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    merges = values["model"].get("merges", [])
    if any(isinstance(merge, list) for merge in merges) and not any(" " in part for merge in merges for part in merge):
        values["model"]["merges"] = [" ".join(merge) for merge in merges]
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
