"""The model families: from a checkpoint's config and tensor names to ours. One module per family."""

from __future__ import annotations

from types import ModuleType

from trtstream.build.families import falcon, llama
from trtstream.build.families.raw_config import RawConfig

ARCHITECTURES: dict[str, ModuleType] = {
    "LlamaForCausalLM": llama,
    "FalconForCausalLM": falcon,
    "RWForCausalLM": falcon,
}
"""Every family module has ``model_config(raw) -> ModelConfig`` and ``recipes(raw, model, layout) -> Recipes``, where
``layout`` is ``huggingface`` or ``gguf``."""

MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "falcon": "FalconForCausalLM",
    "RefinedWeb": "RWForCausalLM",
    "RefinedWebModel": "RWForCausalLM",
}


def find_family(raw: RawConfig) -> ModuleType:
    """The module for the config's architecture; TrtstreamError names one that is not supported."""
    architectures, model_type = raw.get("architectures"), str(raw.get("model_type"))
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else MODEL_TYPES.get(model_type)
    if name not in ARCHITECTURES:
        raise raw.error(
            f"the architecture {name or model_type!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]
