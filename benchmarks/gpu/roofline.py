"""The decode step of the ``cuda`` target, predicted for GPUs that nobody has measured it on.

    python -m benchmarks.gpu.roofline [RESULTS.json]

A step takes ``bytes / (bandwidth * ATTAINED * STREAMED) + kernels * KERNEL_US``. The bytes are those of the weights and
of the visible cache, and the kernels are those that the engine's own code launches: both are counted, not written down.
With the JSON of ``python -m benchmarks.gpu`` the table has the measured step of that GPU beside the predicted one.

The constants and where they come from:

* ``GPUS``: bandwidth and multiprocessors from NVIDIA's data sheets and, for the RTX 4090, its Ada whitepaper.
* ``ATTAINED``: the part of it that a copy on the device reaches. H100s with HBM3 copy about 3.0 of 3.35 TB/s.
* ``STREAMED``: the part of that which products of few tokens reach. An estimate: cuBLAS reads the weights of
  Llama-2-7B's layers at 73 to 92 % of a copy's speed, the larger the faster; kernels that do nothing but read a weight
  in one pass, as ours, reach 93 to 95 %.
* ``KERNEL_US``: what a kernel in a CUDA graph costs beyond its bytes, between the last one's end and its own full
  speed. An estimate; published figures lie between 1 and 2 microseconds.

The first measurement replaces the last three. A product of cuBLAS counts as one kernel, though it may be followed by
the reduction of its split sums. Before torch 2.9, RMSNorm was 6 kernels on CUDA (pytorch/pytorch#153666).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import FULL
from benchmarks.gpu.launches import Engine, meta_weights, step_kernels
from benchmarks.gpu.results import rows_of
from benchmarks.markdown import table
from benchmarks.models import step_bytes
from trtstream.settings import BuildConfig

ATTAINED = 0.9
STREAMED = {"torch": 0.86, "ours": 0.93}
KERNEL_US = 1.5


@dataclass(frozen=True)
class Gpu:
    bandwidth: float  # bytes per second
    multiprocessors: int


GPUS = {
    "H100 SXM": Gpu(3.35e12, 132),
    "H200 SXM": Gpu(4.8e12, 132),
    "A100 80GB SXM": Gpu(2.039e12, 108),
    "L40S": Gpu(0.864e12, 142),
    "L4": Gpu(0.3e12, 58),
    "RTX 4090": Gpu(1.008e12, 128),
}


@dataclass(frozen=True)
class Step:
    """A decode step: the bytes that it must read, the kernels that it launches, and those of them in each layer.

    ``streamed`` is the part of the attained bandwidth at which its products read.
    """

    num_bytes: int
    kernels: int
    kernels_per_layer: int
    streamed: float

    def floor_ms(self, bandwidth: float) -> float:
        """The least time: its bytes at the attained ``bandwidth`` (bytes per second)."""
        return self.num_bytes / bandwidth * 1e3

    def predicted_ms(self, bandwidth: float) -> float:
        return self.floor_ms(bandwidth) / self.streamed + self.kernels * KERNEL_US / 1e3


@cache
def decode_step(engine: Engine, batch: int, multiprocessors: int) -> Step:
    """The step of ``batch`` full sessions of the engine, on a GPU with ``multiprocessors`` multiprocessors."""
    engine = engine._replace(build=replace(engine.build, max_batch_size=batch))
    one, two = (step_kernels(_with_layers(engine, layers), batch, multiprocessors) for layers in (1, 2))
    per_layer = two - one
    kernels = one.total() + (engine.model.num_hidden_layers - 1) * per_layer.total()
    streamed = STREAMED["ours" if per_layer["matvec_kernel"] else "torch"]
    num_bytes = step_bytes(engine.model, engine.build, meta_weights(engine), batch)
    return Step(num_bytes, kernels, per_layer.total(), streamed)


def _with_layers(engine: Engine, layers: int) -> Engine:
    return engine._replace(model=replace(engine.model, num_hidden_layers=layers))


def predictions(gpu: str) -> Iterator[dict[str, Any]]:
    """A row for each model, window and batch that part ``decode`` measures."""
    bandwidth, multiprocessors = GPUS[gpu].bandwidth * ATTAINED, GPUS[gpu].multiprocessors
    for name, model in FULL.models.items():
        for window in FULL.windows:
            for batch in FULL.batches:
                engine = Engine(model, BuildConfig(max_attention_window=window, dtype=FULL.dtype))
                step = decode_step(engine, batch, multiprocessors)
                floor, predicted = step.floor_ms(bandwidth), step.predicted_ms(bandwidth)
                yield {
                    "model": name,
                    "window": window,
                    "batch": batch,
                    "kernels_per_layer": step.kernels_per_layer,
                    "kernels": step.kernels,
                    "read_gb": step.num_bytes / 1e9,
                    "floor_ms": floor,
                    "predicted_ms": predicted,
                    "to_floor": predicted / floor,
                }


def beside_measured(rows: Iterator[dict[str, Any]], results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The predictions with the measured milliseconds on the device, and these over the predicted ones."""
    measured = {
        (row["model"], row["window"], row["batch"]): row["ms"]
        for row in rows_of(results["parts"].get("decode", {}))
        if "ms" in row
    }
    for row in rows:
        ms = measured.get((row["model"], row["window"], row["batch"]))
        yield row if ms is None else row | {"measured_ms": ms, "to_predicted": ms / row["predicted_ms"]}


def main() -> None:
    if len(sys.argv) == 1:
        for gpu in GPUS:
            print(f"## {gpu}, predicted\n\n{table(predictions(gpu))}\n")
        return
    results = json.loads(Path(sys.argv[1]).read_text())
    known = [gpu for gpu in GPUS if all(word in results["device"] for word in gpu.split()[:1])]
    if not known:
        sys.exit(f"no constants for {results['device']}; add it to GPUS in benchmarks/gpu/roofline.py")
    print(f"## {results['device']}\n\n{table(beside_measured(predictions(known[0]), results))}")


if __name__ == "__main__":
    main()
