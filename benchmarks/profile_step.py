"""Where does the time of a decode step on the CPU go, and how near is it to the memory's limit?

Runs in turn a step of one session past its window, each kind of its products alone, and loops that read as many bytes
as the step and do nothing else: in one to eight places at once, in pages of 2 MB and of 4 KB. The floor is the fastest
loop. What the products leave of the step is its attention, norms and activations. Writes JSON and prints a table:

    python -m benchmarks.profile_step ENGINE --json benchmarks/results/profile_step.json
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import write_json
from benchmarks.markdown import table
from benchmarks.models import step_bytes
from benchmarks.read_memory import read_loops
from benchmarks.timing import in_turn, summary
from trtstream.engine_dir import KERNEL, read_engine
from trtstream.machine import machine
from trtstream.plugins.cpu_kernel import open_library
from trtstream.plugins.huge_pages import new_memory
from trtstream.runtime.cpu import CpuBackend
from trtstream.runtime.cpu_step import address, matrix
from trtstream.runtime.decoder import Projection
from trtstream.runtime.loading import load_engine

PROJECTIONS = ("qkv", "attention_output", "up", "down")


def products(
    backend: CpuBackend, library: ctypes.CDLL, threads: int, kept: list[torch.Tensor]
) -> dict[str, Callable[[], None]]:
    """Each kind of product in all layers, and the head's; they use tensors in ``kept``."""
    library.product_bytes.restype = ctypes.c_int64
    number, one = ctypes.c_int64(threads), ctypes.c_int64(1)

    def of(projections: list[Projection]) -> Callable[[], None]:
        matrices = [matrix(projection, kept) for projection in projections]
        columns, rows = (max(getattr(each, name) for each in matrices) for name in ("columns", "rows"))
        workspace = new_memory(library.product_bytes(ctypes.c_int64(columns), one, number))
        x, out = torch.randn(columns), torch.empty(rows)
        kept.extend((x, out, workspace))

        def run() -> None:
            for each in matrices:
                library.multiply(ctypes.byref(each), address(x), one, address(workspace), number, address(out))

        return run

    layers = backend.weights.layers
    return {
        **{name: of([getattr(layer, name) for layer in layers]) for name in PROJECTIONS},
        "head": of([backend.weights.lm_head]),
    }


def profile(folder: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step, its parts and the loops, the floor, and the bytes that a step reads."""
    config = read_engine(folder)
    engine, threads = load_engine(folder), torch.get_num_threads()
    library = open_library(folder / KERNEL, config.pretrained_config, config.build_config)
    backend = engine.backend
    assert isinstance(backend, CpuBackend)
    engine.prefill(0, list(range(2 * engine.build.max_attention_window)))
    nbytes = step_bytes(engine.model, engine.build, backend.weights, 1)
    with tempfile.TemporaryDirectory() as scratch:
        loops = read_loops(nbytes, threads, Path(scratch))
        kept: list[torch.Tensor] = []
        runs: dict[str, Callable[[], object]] = {
            "step": partial(engine.decode, [0], [7]),
            **products(backend, library, threads, kept),
            **loops,
        }
        times = {name: summary(each) for name, each in in_turn(runs, torch.device("cpu"), rounds).items()}
    floor = min(times[name]["ms"] for name in loops)
    rest = times["step"]["ms"] - sum(times[name]["ms"] for name in (*PROJECTIONS, "head"))
    return {
        "dtype": engine.build.dtype,
        "quantization": engine.build.quantization,
        "max_attention_window": engine.build.max_attention_window,
        "threads": threads,
        "rounds": rounds,
        "step_bytes": nbytes,
        "floor_ms": floor,
        "step_to_floor": times["step"]["ms"] / floor,
        "rest_ms": rest,
        "times": times,
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    values = profile(arguments.engine, arguments.rounds)
    rows = [
        {"": name, "ms": each["ms"], "p10 to p90": f"{each['ms_p10']:.2f} to {each['ms_p90']:.2f}"}
        for name, each in values["times"].items()
    ]
    print(table(rows))
    nbytes, floor = values["step_bytes"], values["floor_ms"]
    print(
        f"A step reads {nbytes / 1e6:.1f} MB. The fastest loop takes {floor:.2f} ms for them "
        f"({nbytes / floor / 1e6:.1f} GB/s), and the step {values['step_to_floor']:.2f} times that. "
        f"All that is not a product takes {values['rest_ms']:.2f} ms of it."
    )
    write_json(arguments.json, values)


if __name__ == "__main__":
    main()
