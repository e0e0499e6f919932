"""The decoder's layers by the kernel that has a product and all around it, interpreted, against torch's operators."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints import VARIANTS, write_checkpoint
from trtstream.build.checkpoint import open_checkpoint
from trtstream.plugins import cuda_matvec
from trtstream.runtime import decoder
from trtstream.runtime.decoder import collect_weights, decode_layers, logits

# One of each shape of a layer: gates, biases, parallel residuals, shared norms, LayerNorm, normalized heads, clipping.
SHAPES = ("llama-gqa", "llama-bias", "qwen3", "falcon-7b", "falcon-40b", "falcon-rw", "gpt-neox", "mpt-7b")


@pytest.mark.kernels
@pytest.mark.quick("1-llama-gqa", "3-falcon-40b", "3-falcon-7b")
@pytest.mark.parametrize("variant", SHAPES)
@pytest.mark.parametrize("tokens", [1, 3])
def test_the_kernel_computes_what_torch_does(
    tokens: int, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, variant, num_hidden_layers=2))
    model = checkpoint.model
    weights = collect_weights(model, set(checkpoint.tensor_names()), checkpoint.tensor)
    hidden = torch.randn(tokens, model.hidden_size, generator=torch.Generator().manual_seed(0))

    def attention(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.unflatten(1, (-1, model.head_dim)).split(
            (model.num_attention_heads, model.num_key_value_heads, model.num_key_value_heads), dim=1
        )
        return (q + (k * v).sum(dim=1, keepdim=True)).flatten(1)

    def computed() -> torch.Tensor:
        with torch.inference_mode():
            return logits(decode_layers(hidden, weights, model, attention), weights, model)

    expected = computed()
    launched = []
    matvec = cuda_matvec.matvec
    monkeypatch.setattr(cuda_matvec, "matvec", lambda *args, **others: launched.append(1) or matvec(*args, **others))
    monkeypatch.setattr(cuda_matvec, "PROGRAMS", 4)  # the interpreter takes as long for a small one
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert (computed() - expected).abs().max() < 1e-5 * expected.abs().max()
    assert len(launched) == 2 * 4 + 1
    monkeypatch.setattr(decoder, "KERNEL_TOKENS", tokens - 1)
    assert torch.equal(computed(), expected)
    assert len(launched) == 2 * 4 + 1


def test_all_shapes_of_layers_are_compared(tmp_path: Path) -> None:
    def shape(variant: str) -> tuple[object, ...]:
        model = open_checkpoint(write_checkpoint(tmp_path / variant, variant)).model
        return model.norm, model.hidden_act, model.gated_mlp, model.residual, model.shared_norm, model.qk_norm

    assert {shape(variant) for variant in VARIANTS} == {shape(variant) for variant in SHAPES}
