"""Measures the GPU targets on an NVIDIA GPU: correctness first, then speed.

    python -m benchmarks.gpu                         all that the results lack
    python -m benchmarks.gpu --parts decode,methods  of these parts
    python -m benchmarks.gpu --plan                  the calls of a session whose calls end after 8 minutes
    python -m benchmarks.gpu --tiny                  every part on tiny models, to see that all of it runs

Run it from the sources, installed or not. It needs only torch with CUDA and the Triton language; where transformers is
installed, it recomputes too. Weights are random, of published models' sizes.

Each measurement goes to a JSON file at once: a call that is cut off loses the one that it was in, and the next call
goes on from there. What failed, or was measured with other sources, is measured again. The file is in $OUT where that
is set, a folder of which the machine keeps nothing but the files; it begins as the one of the same name in
benchmarks/results, so that a call goes on from a file that was carried along. Tables are printed part by part, and
``python -m benchmarks.gpu.report FILE`` prints them again.

Kernels are compiled in the beginning, on all processors. Each part has a process of its own, and another one for the
rest when a case crashes it, hangs, or leaves the GPU refusing all work.

The parts that begin with ``tensorrt`` compare TensorRT and TensorRT-RTX with the cuda target: those of the two that can
be imported (with click, numpy and safetensors, which the build needs). A folder on PYTHONPATH is enough:

    pip install --target libraries tensorrt-rtx-cu13
    PYTHONPATH=libraries python -m benchmarks.gpu --parts tensorrt,tensorrt_decode,tensorrt_prefill

They build their engines on the machine that they measure, 26 for each library. So their models are SmolLM2-135M and
TinyLlama-1.1B, which should take well under a minute each.

Exit status: 0 all measured, 1 something failed (the JSON says what) or --seconds were over, 2 bad usage, 3 no usable
GPU. No GPU has run it yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import RESULTS
from benchmarks.gpu import parts

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.launches import Engine
    from benchmarks.gpu.results import Results

NO_GPU = 3


def why_no_gpu() -> str | None:
    """What this machine lacks, in one line; None if it can run the measurements."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    from trtstream.plugins.cuda_device import why_no_cuda

    return why_no_cuda()


def default_parts() -> list[str]:
    """All; TensorRT's where one of its libraries can be imported."""
    tensorrt = any(importlib.util.find_spec(module) for module in ("tensorrt", "tensorrt_rtx"))
    return [name for name, part in parts.PARTS.items() if tensorrt or part.module != "tensorrt"]


def results_file(title: str) -> Path:
    """Where results go: into $OUT, where they begin as those of benchmarks/results; or right there."""
    carried = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', title.lower())}.json"
    if not (folder := os.environ.get("OUT")):
        return carried
    path = Path(folder) / carried.name
    if carried.exists() and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(carried, path)
    return path


def measure(names: list[str], bench: Bench, results: Results, seconds: float) -> bool:
    """Measure what is missing of these parts, for about ``seconds``; whether nothing failed and nothing is left."""
    from benchmarks.gpu.report import part_table

    deadline = time.monotonic() + seconds
    missing = {name: parts.missing(name, bench, results) for name in names}
    if bench.device.type == "cuda":
        compile_kernels([engine for cases in missing.values() for case in cases for engine in case.engines])
    for name in (name for name in names if missing[name]):
        say(f"{name}: {len(missing[name])} to measure ...")
        results.begin(name, parts.sources(name))
        measure_apart(name, bench, results, deadline)
        print(f"{part_table(name, results.part(name))}\n", flush=True)
    return all(results.part(name).get("state") == "complete" and not results.failures(name) for name in names)


def compile_kernels(engines: list[Engine]) -> None:
    from benchmarks.gpu.launches import compile_all

    started = time.monotonic()
    for error in compile_all(engines):
        say(f"  {error}")
    say(f"kernels compiled in {time.monotonic() - started:.0f} s")


def measure_apart(
    name: str, bench: Bench, results: Results, deadline: float, worker: Sequence[str] = ("-m", "benchmarks.gpu.worker")
) -> None:
    """Measure one part in processes of its own, the next of which goes on behind the case that ended the last."""
    from benchmarks.gpu.bench import TINY

    path = [str(parts.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    sizes = "tiny" if bench.sizes is TINY else "full"
    while True:
        cases = len(results.part(name)["cases"])
        seconds = deadline - time.monotonic()
        arguments = [name, str(results.path), str(bench.device), sizes, str(seconds)]
        command = [sys.executable, *worker, *arguments]
        status = subprocess.run(command, env=environment).returncode
        results.read()
        if status == 0:
            return
        error = f"its process ended with status {status}"
        if (labels := results.part(name).get("measuring")) is not None:
            results.add(name, labels, [{"error": error}], 0.0)
        if len(results.part(name)["cases"]) == cases:
            results.finish(name, state="failed", error=error)
            return


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    arguments = parse_arguments()
    no_gpu = why_no_gpu() if arguments.device == "cuda" else None
    if no_gpu and not arguments.plan:
        say(f"benchmarks.gpu needs an NVIDIA GPU: {no_gpu}")
        return NO_GPU
    import torch

    from benchmarks.gpu.bench import FULL, TINY, Bench
    from benchmarks.gpu.report import goals, plan_lines
    from benchmarks.gpu.results import Results

    bench = Bench(torch.device(arguments.device), TINY if arguments.tiny else FULL)
    title = None if no_gpu else bench.title
    path = arguments.json or results_file(title or "no GPU")
    path.parent.mkdir(parents=True, exist_ok=True)
    results = Results(path, title)
    names = arguments.parts or default_parts()
    if arguments.plan:
        print(plan_lines(parts.plan(names, bench, results)))
        return 0
    done = measure(names, bench, results, arguments.seconds)
    print(goals(results.values), flush=True)
    return 0 if done else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=part_names, default=[], help=f"some of: {','.join(parts.PARTS)}")
    parser.add_argument("--plan", action="store_true", help="print the calls that the results still need, and stop")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no measurement after so long")
    parser.add_argument("--json", type=Path, help="default: gpu-<the GPU's name>.json in $OUT or benchmarks/results")
    parser.add_argument("--tiny", action="store_true", help="tiny models and windows: does everything run?")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: for tests, with --tiny")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu is for tests and needs --tiny")
    return arguments


def part_names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in parts.PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is not a part; the parts are {', '.join(parts.PARTS)}")
    return names


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # what was measured is in the file
        sys.exit(130)
