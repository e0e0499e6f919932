from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def mutant(tmp_path: Path, interpreter: None) -> Callable[[ModuleType, str, str], ModuleType]:
    """``mutant(module, right, wrong)`` is the module with ``right`` replaced in its source, in the interpreter."""

    def load(module: ModuleType, right: str, wrong: str) -> ModuleType:
        source = Path(module.__file__).read_text()
        assert right in source, f"{right!r} is not in {module.__name__} any more"
        path = tmp_path / "mutant.py"
        path.write_text(source.replace(right, wrong))
        spec = importlib.util.spec_from_file_location("mutant", path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    return load


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run in the Triton language's interpreter, whose products of bfloat16 take their bits for integers."""
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
