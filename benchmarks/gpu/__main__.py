"""Measures the GPU targets on an NVIDIA GPU: correctness first, then speed.

    python -m benchmarks.gpu                         all parts that the JSON lacks; cuda's: under 8 minutes on an H100
    python -m benchmarks.gpu --parts decode,methods  these, even if the JSON has them
    python -m benchmarks.gpu --tiny                  every part on tiny models, to see that all of it runs

Run it from the sources, installed or not. It needs only torch with CUDA and the Triton language; where transformers is
installed, it does the recomputing. Weights are random, of published models' sizes. Each measurement goes to a JSON file
at once, and all of them to stdout as markdown tables. A part that the file has complete and from the same sources is
not measured again. Each part has a process of its own.

The parts that begin with ``tensorrt`` compare TensorRT and TensorRT-RTX with the cuda target: those of the two that can
be imported (with click, numpy and safetensors, which the build needs). A folder on PYTHONPATH is enough:

    pip install --target libraries tensorrt-rtx-cu13
    PYTHONPATH=libraries python -m benchmarks.gpu --parts tensorrt,tensorrt_decode,tensorrt_prefill

They build their engines on the machine that they measure, 14 for each library. So their models are SmolLM2-135M and
TinyLlama-1.1B, which should take well under a minute each.

Exit status: 0 all measured, 1 a part failed (the others ran; the JSON says why), 2 bad usage, 3 no usable GPU.
No GPU has run it yet.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import RESULTS

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench, Row

# The module of each part, in the order in which they run. A part is a function of a Bench that yields its rows one by
# one, so that a failure keeps the rows before it.
PARTS = {
    "environment": "measurements",
    "correctness": "correctness",
    "bandwidth": "measurements",
    "decode": "measurements",
    "prefill": "measurements",
    "methods": "comparisons",
    "flatness": "measurements",
    "compilation": "comparisons",
    "quantization": "comparisons",
    "products": "comparisons",
    "attention": "measurements",
    "tensorrt": "tensorrt",
    "tensorrt_decode": "tensorrt",
    "tensorrt_prefill": "tensorrt",
}
PART_SECONDS = 300  # a part that takes longer hangs
BUILDING_PART_SECONDS = 900  # one that builds TensorRT engines, several for each library
ROOT = Path(__file__).resolve().parents[2]
MEASURED = (
    *(f"benchmarks/{name}.py" for name in ("baselines", "models", "timing", "gpu/*")),
    *("build/families/*.py", "build/recipes.py", "build/tensorrt/*.py", "plugins/*.py", "trtstream/runtime/*.py"),
)
NO_GPU = 3


def why_no_gpu() -> str | None:
    """What this machine lacks, in one line; None if it can run the measurements."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    from trtstream.plugins.cuda_device import why_no_cuda

    return why_no_cuda()


def sources_digest() -> str:
    """Names the state of the code that is measured, with or without git."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in MEASURED for path in ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Results:
    """The JSON file: the device, and of each part its rows, its seconds and how it ended."""

    def __init__(self, path: Path, device: str, sources: str) -> None:
        self._path, self._sources = path, sources
        self.values: dict[str, Any] = {"device": device, "parts": {}}
        self.read()
        if self.values.get("device") != device:
            raise SystemExit(f"{path} is of {self.values.get('device')} and this is {device}; choose another --json")

    def read(self) -> None:
        if self._path.exists():
            try:
                self.values = json.loads(self._path.read_text())
            except ValueError as error:
                raise SystemExit(f"{self._path} is not this script's ({error}); choose another --json") from None

    def state(self, part: str) -> str | None:
        """``complete``, ``failed``, ``unfinished``, or None."""
        return self.values["parts"].get(part, {}).get("state")

    def has(self, part: str) -> bool:
        """Whether the part is complete, and of today's sources."""
        return self.state(part) == "complete" and self.values["parts"][part]["sources"] == self._sources

    def start(self, part: str) -> None:
        self.values["parts"].pop(part, None)
        self.record(part, state="unfinished", sources=self._sources, seconds=0.0, rows=[])

    def record(self, part: str, **values: Any) -> None:
        self.values["parts"].setdefault(part, {}).update(values)
        work = self._path.with_suffix(".tmp")
        work.write_text(json.dumps(self.values, indent=1) + "\n")
        os.replace(work, self._path)


def measure(part: str, bench: Bench, results: Results) -> bool:
    """Run one part in this process, row by row into the file; whether it was completed."""
    function = getattr(importlib.import_module(f"benchmarks.gpu.{PARTS[part]}"), part)
    started = time.perf_counter()
    rows: list[Row] = []
    results.start(part)
    state: dict[str, Any] = {"state": "complete"}
    try:
        for row in function(bench):
            rows.append(row)
            results.record(part, rows=rows, seconds=round(time.perf_counter() - started, 1))
            say(f"  {', '.join(f'{key} {value}' for key, value in row.items())}")
    except Exception as error:
        traceback.print_exc()
        state = {"state": "failed", "error": f"{type(error).__name__}: {error}"}
    results.record(part, **state, seconds=round(time.perf_counter() - started, 1))
    return state["state"] == "complete"


def measure_apart(part: str, command: list[str], results: Results) -> bool:
    """Run one part in a process of its own, so that a crash or a hang there harms no other part."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    seconds = BUILDING_PART_SECONDS if PARTS[part] == "tensorrt" else PART_SECONDS
    results.start(part)
    try:
        done = subprocess.run([*command, "--parts", part], env=environment, stdout=subprocess.DEVNULL, timeout=seconds)
        status = done.returncode
        error = f"its process ended with status {status}"
    except subprocess.TimeoutExpired:
        status, error = None, f"took longer than {seconds} s"
    results.read()
    if status != 0 and results.state(part) != "failed":
        results.record(part, state="failed", error=error)
    return status == 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    arguments = parse_arguments()
    if arguments.device == "cuda" and (reason := why_no_gpu()):
        say(f"benchmarks.gpu needs an NVIDIA GPU: {reason}")
        return NO_GPU
    import torch

    from benchmarks.gpu.bench import FULL, TINY, Bench
    from benchmarks.gpu.report import markdown

    device = torch.device(arguments.device)
    title = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    if arguments.tiny:
        title += ", tiny sizes"
    path = arguments.json or RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', title.lower())}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = Results(path, title, sources_digest())
    if len(arguments.parts) == 1:
        completed = [measure(arguments.parts[0], Bench(device, TINY if arguments.tiny else FULL), results)]
    else:
        command = [sys.executable, "-m", "benchmarks.gpu", "--device", arguments.device, "--json", str(path)]
        command += ["--tiny"] if arguments.tiny else []
        completed = []
        for part in arguments.parts or [part for part in PARTS if not results.has(part)]:
            say(f"{part} ...")
            completed.append(measure_apart(part, command, results))
    print(markdown(results.values))
    return 0 if all(completed) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=part_names, default=[], help=f"some of: {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/gpu-<the GPU's name>.json")
    parser.add_argument("--tiny", action="store_true", help="tiny models and windows: does everything run?")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: for tests, with --tiny")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu is for tests and needs --tiny")
    return arguments


def part_names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is not a part; the parts are {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # what was measured is in the file
        sys.exit(130)
