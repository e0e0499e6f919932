"""The model families: from a checkpoint's config and tensor names to ours. A family is one module and one line here."""

from __future__ import annotations

from trtstream.build.families import falcon, gpt_neox, llama, mistral, mpt, phi3, qwen2, qwen3
from trtstream.build.families.family import Family
from trtstream.build.families.raw_config import RawConfig
from trtstream.errors import TrtstreamError
from trtstream.typed_json import shown

FAMILIES = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    phi3.FAMILY,
    falcon.FAMILY,
    gpt_neox.FAMILY,
    mpt.FAMILY,
)
ARCHITECTURES = {name: family for family in FAMILIES for name in family.architectures.values()}


def find_family(raw: RawConfig) -> Family:
    """The family of a config. Raises TrtstreamError for an architecture, or a part of one, that is not supported."""
    names, model_type = raw.get("architectures"), raw.get("model_type")
    by_type = {key: name for family in FAMILIES for key, name in family.architectures.items()}
    name = names[0] if isinstance(names, list) and names else by_type.get(str(model_type), model_type)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise raw.error(f"the architecture {shown(name)} is not supported; supported are {', '.join(ARCHITECTURES)}")
    raw.refuse_unsupported()
    return ARCHITECTURES[name]


def find_gguf_family(where: str, architecture: str) -> Family:
    """The family of a GGUF architecture; TrtstreamError names ``where`` it was found if it is not supported."""
    families = {family.gguf_architecture: family for family in FAMILIES if family.gguf_architecture is not None}
    if architecture not in families:
        raise TrtstreamError(
            f"{where}: the architecture {shown(architecture)} is not supported; supported are {', '.join(families)}"
        )
    return families[architecture]
