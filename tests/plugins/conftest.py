from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.mutants import load_mutant


@pytest.fixture
def mutant(tmp_path: Path, interpreter: None) -> Callable[[ModuleType, str, str], ModuleType]:
    """``mutant(module, right, wrong)`` is the module with ``right`` replaced in its source, in the interpreter."""
    return partial(load_mutant, folder=tmp_path)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run in the Triton language's interpreter, whose bfloat16 products would use the bits as integers."""
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

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot_of_bfloat16)
