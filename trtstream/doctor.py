"""``trtstream doctor``: what this machine can build and run, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtstream.errors import TrtstreamError

if TYPE_CHECKING:
    from trtstream.targets import Target

# What makes the cpu target fast, of the instruction sets that a CPU may have.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
# Of each extra: a package that it brings, and what needs it.
EXTRAS = {
    "client": ("tritonclient.grpc", "smoke, bench and chat"),
    "gguf": ("gguf", "checkpoints in .gguf files"),
    "postgres": ("psycopg", "sessions in PostgreSQL"),
    "bench": ("matplotlib", "bench --plot and eval --plot"),
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``detail`` describes it if it is ``ok``, else says what is missing and the fix."""

    name: str
    ok: bool
    detail: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(as_json: bool) -> None:
    """Show what this machine can build and run, and what is missing.

    A target that cannot run here is not an error: engines may be built on one machine and run on another.
    """
    groups = [list(machine_checks()), list(target_checks()), list(package_checks())]
    if as_json:
        checks = {check.name: {"ok": check.ok, "detail": check.detail} for group in groups for check in group}
        click.echo(json.dumps(checks, indent=2))
        return

    from trtstream.tables import print_table

    rows: list[tuple[str, ...]] = []
    for group in groups:
        rows += [(), *((check.name, "yes" if check.ok else "no", check.detail) for check in group)]
    print_table(("", "here", ""), rows[1:], left=3)


def machine_checks() -> Iterator[Check]:
    import torch

    from trtstream.machine import available_memory, cpu_flags, machine, physical_memory, usable_cpus
    from trtstream.plugins.cuda_device import why_no_gpu

    facts = machine()
    yield Check("Python", True, f"{facts['python']} on {platform.platform()}")
    yield Check("torch", True, facts["torch"])
    sets = [name for name in INSTRUCTION_SETS if name in cpu_flags()]
    yield Check("CPU", True, f"{facts['cpu']}, {facts['cores']} cores, {', '.join(sets) or 'without AVX2'}")
    yield _threads(torch.get_num_threads(), usable_cpus())
    yield Check("memory", True, f"{physical_memory() / 1e9:.1f} GB, {available_memory() / 1e9:.1f} GB available")
    reason = why_no_gpu()
    yield Check("GPU", reason is None, torch.cuda.get_device_name() if reason is None else reason)


def _threads(threads: int, cpus: float) -> Check:
    """Threads wait for each other several times a layer, so that one without a CPU of its own delays all."""
    if "OMP_NUM_THREADS" not in os.environ:
        return Check("threads", True, f"up to {max(1, int(cpus))}, as many as other processes leave CPUs")
    if threads > cpus:
        return Check("threads", False, f"{threads} for {cpus:g} CPUs; unset OMP_NUM_THREADS")
    return Check("threads", True, f"{threads} for {cpus:g} CPUs, fixed by OMP_NUM_THREADS")


def target_checks() -> Iterator[Check]:
    from trtstream.plugins.cuda_device import why_no_gpu
    from trtstream.targets import TARGETS

    no_gpu = why_no_gpu()
    for name, target in TARGETS.items():
        yield _check(f"build {name}", partial(_builder, target))
        reason = target.why_not()
        yield Check(f"run {name}", reason is None, "no GPU" if reason == no_gpu else reason or "")
    yield _check("trtllm-build", _trtllm_build)


def _builder(target: Target) -> str:
    target.check_builder()
    return ", ".join([*target.dtypes, *target.quantizations[1:]])


def _trtllm_build() -> str:
    from trtstream.build.tensorrt_llm.build_command import SCRIPT, find_trtllm_build

    found = find_trtllm_build()
    if found is None:
        raise TrtstreamError(f"not on PATH; a tensorrt-llm engine gets a {SCRIPT} to run where it is")
    return f"{found[0]}, {found[1]}"


def package_checks() -> Iterator[Check]:
    yield _check("serve", _tritonserver)
    for extra, (package, user) in EXTRAS.items():
        yield _check(user, partial(_extra, package, extra, user))


def _tritonserver() -> str:
    from trtstream.deploy.serving.tritonserver import find_tritonserver

    with tempfile.TemporaryDirectory() as work:
        return str(find_tritonserver(Path(work)).binary)


def _extra(package: str, extra: str, user: str) -> str:
    from trtstream.extras import require_extra

    require_extra(package, extra, user)
    return f"trtstream[{extra}]"


def _check(name: str, look: Callable[[], str]) -> Check:
    """``look`` returns the detail, or raises TrtstreamError with what is missing."""
    try:
        return Check(name, True, look())
    except TrtstreamError as error:
        return Check(name, False, str(error))
