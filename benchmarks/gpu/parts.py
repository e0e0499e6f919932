"""The parts of the measurements, how long each takes, and the calls that a session with a borrowed GPU is made of."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench, Case
    from benchmarks.gpu.results import Results


@dataclass(frozen=True)
class Part:
    """A function in ``module`` that takes a Bench and yields the part's cases, of about ``seconds`` each.

    The seconds are estimated for an H100 and kernels that are compiled already; no GPU has measured them.
    """

    module: str
    seconds: float

    @property
    def hanging_seconds(self) -> float:
        """A case that takes longer hangs."""
        return 60 + 3 * self.seconds


# In the order of their worth: figures of wrong kernels are worth nothing, and the goals come next.
PARTS = {
    "environment": Part("measurements", 1),
    "bandwidth": Part("measurements", 2),
    "correctness": Part("correctness", 4),
    "decode": Part("measurements", 5),
    "methods": Part("comparisons", 20),
    "compilation": Part("comparisons", 90),
    "quantization": Part("comparisons", 40),
    "kv_dtypes": Part("comparisons", 15),
    "prefill": Part("measurements", 6),
    "products": Part("comparisons", 4),
    "flatness": Part("measurements", 6),
    "attention": Part("measurements", 2),
    "tensorrt": Part("tensorrt", 300),
    "tensorrt_decode": Part("tensorrt", 300),
    "tensorrt_prefill": Part("tensorrt", 300),
}
CALL_SECONDS = 420  # of a call that may take 8 minutes, for what it measures
COMPILING_SECONDS = 40  # of a call, in the beginning
STARTING_SECONDS = 8  # of a part's process: torch is imported, the GPU's context made
ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("build/families/*.py", "build/recipes.py", "build/tensorrt/*.py", "plugins/*.py", "trtstream/runtime/*.py")
MEASURING = ("baselines", "models", "timing", "gpu/bench", "gpu/engines")


def cases(name: str, bench: Bench) -> Iterator[Case]:
    """The part's cases, in the order in which they run. Nothing is measured before a case's own ``run``."""
    return getattr(importlib.import_module(f"benchmarks.gpu.{PARTS[name].module}"), name)(bench)


def missing(name: str, bench: Bench, results: Results) -> list[Case]:
    """The part's cases that the results lack, have failed, or have from other sources."""
    done = [case["labels"] for case in results.good_cases(name, sources(name))]
    return [case for case in cases(name, bench) if case.labels not in done]


def sources(name: str) -> str:
    """Names the state of the code that the part measures, and of the part itself, with or without git."""
    digest = hashlib.sha256()
    patterns = *MEASURED, *(f"benchmarks/{each}.py" for each in (*MEASURING, f"gpu/{PARTS[name].module}"))
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass
class Call:
    """A call of the script: its parts, and an estimate of its seconds."""

    parts: list[str] = field(default_factory=list)
    cases: int = 0
    seconds: float = COMPILING_SECONDS


def plan(names: list[str], bench: Bench, results: Results) -> list[Call]:
    """The calls that measure what is missing of these parts, in their order, none above CALL_SECONDS.

    A part that does not fit into what is left of a call continues in the next one.
    """
    calls: list[Call] = []
    for name in names:
        left, each = len(missing(name, bench, results)), PARTS[name].seconds
        while left:
            room = CALL_SECONDS - STARTING_SECONDS - (calls[-1].seconds if calls else CALL_SECONDS)
            if room < each:
                calls.append(Call())
                continue
            taken = min(left, int(room / each))
            call = calls[-1]
            call.parts.append(name)
            call.cases += taken
            call.seconds += STARTING_SECONDS + taken * each
            left -= taken
    return calls
