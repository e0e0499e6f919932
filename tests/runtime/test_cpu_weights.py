"""The cpu target's weights in memory, and torch's products with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engines import SIZES, build_variant
from trtstream.engine_dir import WEIGHTS
from trtstream.plugins.huge_pages import new_memory
from trtstream.runtime import decoder
from trtstream.runtime.cpu_weights import ALIGNMENT, padded_rows, read_cpu_weights
from trtstream.runtime.decoder import DecoderWeights, Projection, linear, read_weights


def matrices(weights: DecoderWeights) -> list[torch.Tensor]:
    projections = [weights.lm_head]
    for layer in weights.layers:
        projections += [layer.qkv, layer.attention_output, layer.up, layer.down]
    return [weights.embedding, *(projection.weight for projection in projections)]


@pytest.mark.quick("llama-gqa-bfloat16", "falcon-7b-float32")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["llama-gqa", "falcon-7b"])  # untied; tied, and 40 columns
def test_weights_lie_in_one_memory_with_padded_rows(variant: str, dtype: str, tmp_path: Path) -> None:
    checkpoint, engine = build_variant(tmp_path, variant, **{**SIZES, "dtype": dtype})
    model = checkpoint.model
    found = matrices(read_cpu_weights(engine / WEIGHTS, model, dtype))
    expected = matrices(read_weights(engine / WEIGHTS, model, torch.device("cpu")))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() % ALIGNMENT == 0
        assert one.stride(0) % 32 == 0
        assert padded_rows(one) is one
        padding = one.as_strided((len(one), one.stride(0)), (one.stride(0), 1))[:, one.shape[1] :]
        assert padding.count_nonzero() == 0
    assert len({weight.untyped_storage().data_ptr() for weight in found}) == 1
    assert (found[0] is found[1]) == model.tie_word_embeddings


def test_rows_that_need_padding_are_copied() -> None:
    weight = torch.randn(3, 40)
    padded = padded_rows(weight)
    assert torch.equal(padded, weight)
    assert padded.stride() == (64, 1)


def test_memory_asks_for_huge_pages() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has none")
    memory = new_memory(5_000_000)
    assert memory.count_nonzero() == 0
    address, flags = memory.data_ptr(), ""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            inside = begin <= address < end
        elif inside and fields[0] == "VmFlags:":
            flags = line
    assert " hg" in flags


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_bfloat16_products_without_the_cpus_help(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed in float32 and rounded once, a few rows of the weight at a time."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 48, generator=generator).bfloat16() for n in (rows, 100))
    bias = torch.randn(100, generator=generator).bfloat16()
    monkeypatch.setattr(decoder, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(decoder, "WIDENED_ELEMENTS", 7 * 48)
    found = linear(x, Projection(weight, bias))
    assert found.dtype == torch.bfloat16
    expected = x.float() @ weight.float().T + bias.float()
    assert ((found.float() - expected).abs() <= 0.01 * expected.abs() + 0.05).all()
