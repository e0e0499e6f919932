"""A converted checkpoint's config.json against the fields that each release's loader reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.build.tensorrt_llm_config_fields import (
    ACTIVATIONS,
    FIELDS,
    MAPPING,
    POSITIONS,
    QUANTIZATION,
    REQUIRED,
    Types,
)
from tests.checkpoints import VARIANTS, write_checkpoint
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.tensorrt_llm.checkpoint_config import checkpoint_config
from trtstream.build.tensorrt_llm.releases import RELEASES, find_release
from trtstream.errors import TrtstreamError
from trtstream.settings import BuildConfig, TensorrtLlmOptions
from trtstream.targets import TARGETS

REFUSED = ("llama-rope-yarn", "qwen2", "qwen3", "phi3", "gpt-neox", "mpt-7b")
TAKEN = [variant for variant in VARIANTS if variant not in REFUSED]


def assert_typed(values: dict[str, Any], types: dict[str, Types]) -> None:
    assert sorted(values) == sorted(types)
    for name, value in values.items():
        assert type(value) in types[name], f"{name} is {value!r}"


def test_every_release_has_its_list() -> None:
    assert list(FIELDS) == [release.name for release in RELEASES]


@pytest.mark.parametrize("variant", TAKEN)
def test_fields(variant: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, variant))
    for name, fields in FIELDS.items():
        if variant == "llama-rope-llama3" and name == "0.10":
            continue
        for quantization in TARGETS["tensorrt-llm"].quantizations:
            build = BuildConfig(
                dtype="bfloat16",
                quantization=quantization,
                sink_token_length=0,
                max_sink_token_length=0,
                tensorrt_llm=TensorrtLlmOptions(tp_size=2),
            )
            config = checkpoint_config(checkpoint.model, checkpoint.tensor_names(), build, find_release(name))
            expected = fields.llama if variant.startswith(("llama", "mistral")) else fields.falcon
            if variant == "falcon-rw":
                expected = {field: types for field, types in expected.items() if field != "rotary_base"}
            assert_typed(config, expected)
            assert not set(config) & fields.left_out
            assert set(REQUIRED) <= set(config)
            assert_typed(config["mapping"], MAPPING)
            assert_typed(config["quantization"], QUANTIZATION)
            assert config["hidden_act"] in ACTIVATIONS
            assert config["position_embedding_type"] in POSITIONS
            scaling = config.get("rotary_scaling")
            assert scaling is None or scaling["type"] in fields.rotary_scaling_types


def test_an_architecture_that_upstream_lacks_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, "llama-gqa"))
    model = replace(checkpoint.model, architecture="MambaForCausalLM")
    message = (
        "does not support MambaForCausalLM; supported are LlamaForCausalLM, MistralForCausalLM, FalconForCausalLM: use"
    )
    with pytest.raises(TrtstreamError, match=message):
        checkpoint_config(model, checkpoint.tensor_names(), BuildConfig(dtype="bfloat16"), RELEASES[-1])


def test_rotary_scaling(tmp_path: Path) -> None:
    """linear and llama3 in upstream's words; dynamic scales nothing inside the trained context."""
    found = {}
    for kind in ("dynamic", "linear", "llama3"):
        checkpoint = open_checkpoint(write_checkpoint(tmp_path / kind, f"llama-rope-{kind}"))
        build = BuildConfig(dtype="bfloat16", sink_token_length=0, max_sink_token_length=0)
        config = checkpoint_config(checkpoint.model, checkpoint.tensor_names(), build, find_release("0.12"))
        found[kind] = config["rotary_scaling"]
    assert found == {
        "dynamic": None,
        "linear": {"type": "linear", "factor": 4.0},
        "llama3": {
            "type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    }
