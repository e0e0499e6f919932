from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.mutants import load_mutant


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A mutant may read beyond its tensors, and NumPy, in the interpreter, warns of what it computes with that."""
    for item in items:
        if "mutant" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))


@pytest.fixture
def mutant(tmp_path: Path, interpreter: None) -> Callable[[ModuleType, str, str], ModuleType]:
    """``mutant(module, right, wrong)`` is the module with ``right`` replaced in its source, in the interpreter."""
    return partial(load_mutant, folder=tmp_path)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run in the Triton language's interpreter without its faults: it takes bfloat16's bits for integers in
    products and in conversions from integers, and truncates numbers to 8-bit floats."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    create_dot = InterpreterBuilder.create_dot

    def widened(x: TensorHandle) -> TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot_of_bfloat16(
        self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *args: object
    ) -> TensorHandle:
        return create_dot(self, widened(a), widened(b), *args)

    convert = InterpreterBuilder.create_fp_to_fp

    def convert_and_round(self: InterpreterBuilder, x: TensorHandle, dtype: tl.dtype, *args: object) -> TensorHandle:
        if dtype.scalar != tl.float8e4nv:
            return convert(self, x, dtype, *args)
        rounded = torch.from_numpy(x.data).to(torch.float8_e4m3fn).view(torch.uint8)
        return TensorHandle(rounded.numpy(), tl.float8e4nv)

    widen = InterpreterBuilder.create_si_to_fp

    def widen_exactly(self: InterpreterBuilder, x: TensorHandle, dtype: tl.dtype) -> TensorHandle:
        if dtype.scalar != tl.bfloat16:
            return widen(self, x, dtype)
        return convert(self, widen(self, x, tl.float32), dtype, None)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot_of_bfloat16)
    monkeypatch.setattr(InterpreterBuilder, "create_si_to_fp", widen_exactly)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", convert_and_round)
