"""Kernels that are launched before the last one has ended touch nothing that it may write before it has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trtstream.plugins import cuda_chain

ROOT = Path(__file__).parents[2]
COMPILE = """
import sys
from benchmarks.kernel_resources import compile_kernel
from trtstream.plugins import cuda_decode, cuda_matvec

kernel, capability = sys.argv[1:3]
print(compile_kernel(kernel, "Llama-2-7B", "float16", "float16", int(capability)).asm["ptx"])
"""
OF_MEMORY = re.compile(r"\b(ld|st|atom|red|cp)\.\S*(global|bulk|async)")
WAIT, LAUNCH, FETCH = "griddepcontrol.wait", "griddepcontrol.launch_dependents", "prefetch.global.L2"


def instructions(kernel: str, capability: int, folder: Path, source: str = COMPILE) -> list[str]:
    """The kernel's PTX. In its own process: in this one the Triton language is its interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", source, kernel, str(capability)],
        cwd=ROOT,
        env=os.environ | {"TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def position(lines: list[str], wanted: str) -> int:
    (found,) = [number for number, line in enumerate(lines) if wanted in line]
    return found


def first_access(lines: list[str]) -> int:
    """Of the GPU's memory, besides what is fetched into its cache and the parameters."""
    return next(number for number, line in enumerate(lines) if OF_MEMORY.search(line))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [90, 120])
@pytest.mark.parametrize("kernel", ["decode", "matvec", "matvec, 8 tokens"])
def test_a_kernel_waits_before_it_touches_memory(kernel: str, capability: int, tmp_path: Path) -> None:
    lines = instructions(kernel, capability, tmp_path)
    wait = position(lines, WAIT)
    assert position(lines, LAUNCH) < wait < first_access(lines)
    fetches = [number for number, line in enumerate(lines) if FETCH in line]
    assert (fetches != []) == (kernel != "decode"), "a matvec's weight is on its way before the wait"
    assert all(number < wait for number in fetches)


@pytest.mark.slow
def test_the_comparison_sees_a_late_wait(tmp_path: Path) -> None:
    late = COMPILE.replace("kernel, capability =", "exec(MUTATION)\nkernel, capability =").replace(
        "MUTATION",
        repr(
            "module, wait = cuda_decode.decode_kernel, '    wait_for_last_kernel(CHAINED)\\n'\n"
            "source = module.src.replace(wait, '').replace('    is_session = ', wait + '    is_session = ', 1)\n"
            "module._unsafe_update_src(source)"
        ),
    )
    lines = instructions("decode", 90, tmp_path, late)
    assert first_access(lines) < position(lines, WAIT)


@pytest.mark.slow
def test_older_gpus_have_none_of_it(tmp_path: Path) -> None:
    lines = instructions("matvec", 80, tmp_path)
    assert not any(word in line for line in lines for word in (WAIT, LAUNCH, FETCH))


@pytest.mark.parametrize(("capability", "chained"), [((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_kernels_are_launched_early_from_hopper_on(
    capability: tuple[int, int], chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert cuda_chain.early_launch(torch.device("cuda")) == {"CHAINED": chained, "launch_pdl": chained}
    assert not cuda_chain.early_launch(torch.device("cpu"))["launch_pdl"]
