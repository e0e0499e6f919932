"""The cuda target's rotations, in the Triton language's interpreter, against the definition's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trtstream.plugins import cuda_ops, cuda_rotation
from trtstream.plugins.decode_plan import step_rotation
from trtstream.plugins.positions import PositionEncoding, inverse_frequencies
from trtstream.settings import RopeConfig

AT = torch.tensor([[0, 0], [23, 23], [1000, 27], [4_000_000, 27], [2**40 + 1, 27]])
ENCODINGS = {
    "default": RopeConfig(),
    "scaled": RopeConfig("yarn", factor=4.0, original_max_position_embeddings=1024),
    "scaled in part": RopeConfig("yarn", factor=4.0, original_max_position_embeddings=1024, rotary_dim=20),
}


def worst_error(rope: RopeConfig, launch: Callable[..., torch.Tensor]) -> float:
    positions = PositionEncoding(*inverse_frequencies(rope, 48))
    found = launch(AT, positions.frequencies, positions.scale)
    expected = step_rotation(positions, AT)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("rope", ENCODINGS.values(), ids=ENCODINGS)
def test_the_kernel_rounds_float64s_rotation_to_float32(rope: RopeConfig, interpreter: None) -> None:
    """To half a unit in the last place, or to the other neighbour where two libraries' cosines lie on either side."""
    assert worst_error(rope, cuda_rotation.launch_rotation) <= torch.finfo(torch.float32).eps


MUTATIONS = {
    "frequencies in float32": ("* frequency\n", "* frequency.to(tl.float32).to(tl.float64)\n"),
    "t for both": ("tl.load(at + position)", "tl.load(at + position // 2 * 2)"),
    "pairs that do not rotate are scaled": ("tl.where(rotates, cos * SCALE, cos)", "(cos * SCALE)"),
    "no scale": ("sin * SCALE", "sin"),
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_the_comparison_sees_a_mutated_kernel(mutation: tuple[str, str], mutant: Callable) -> None:
    broken = mutant(cuda_rotation, *mutation)
    assert max(worst_error(rope, broken.launch_rotation) for rope in ENCODINGS.values()) > 1e-4


def test_the_op_runs_the_kernel_under_the_interpreter_and_else_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    launch = cuda_rotation.launch_rotation
    monkeypatch.setattr(cuda_rotation, "launch_rotation", lambda *args: launched.append(1) or launch(*args))
    for interpreter in (0, 1):
        monkeypatch.setenv("TRITON_INTERPRET", str(interpreter))
        assert worst_error(ENCODINGS["scaled"], cuda_ops.step_rotation) <= torch.finfo(torch.float32).eps
        assert len(launched) == interpreter
