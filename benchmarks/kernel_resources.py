"""Registers, shared memory and stack of the cuda target's kernels as machine code, for GPUs that need not be here.

    python -m benchmarks.kernel_resources [--json FILE] [--arch 80 --arch 90 ...]

Compiles each kernel for each compute capability, model and number format exactly as the runtime launches it, and prints
a table. A stack is where spilled registers go: there should be none. Needs torch and triton; nothing is run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trtstream.plugins import cuda_decode, cuda_prefill

# Bytes of shared memory that a block may take, by compute capability (CUDA C++ Programming Guide, table of technical
# specifications; sm_86, sm_89 and sm_120 have the least of those that we take).
SHARED_MEMORY_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 120: 99 * 1024}
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
WINDOW, MAX_SINKS = 1024, 4


@dataclass(frozen=True)
class Model:
    heads: int
    kv_heads: int
    head_dim: int
    alibi: bool = False


MODELS = {
    "Llama-2-7B": Model(32, 32, 128),
    "Llama-3-8B": Model(32, 8, 128),
    "SmolLM2-135M": Model(9, 3, 64),
    "Falcon-7B": Model(71, 1, 64),
    "Falcon-RW-1B": Model(32, 32, 64, alibi=True),
}
KERNELS = ("decode", "prefill")


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of a GPU: registers and stack bytes a thread, shared memory bytes a block."""

    kernel: str
    model: str
    dtype: str
    capability: int
    num_warps: int
    registers: int
    shared_memory: int
    stack: int


def resources(kernel: str, model: str, dtype: str, capability: int) -> Resources:
    """Compile ``kernel`` ("decode", of a cache split over programs, or "prefill") and read the machine code's needs."""
    sizes = MODELS[model]
    module = {"decode": cuda_decode, "prefill": cuda_prefill}[kernel]
    constants = getattr(module, f"{kernel}_constants")(
        sizes.heads, sizes.kv_heads, sizes.head_dim, WINDOW, MAX_SINKS, getattr(torch, dtype)
    )
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    constants["rotation" if sizes.alibi else "slopes"] = None
    if kernel == "decode":
        constants["SPLIT"] = True
    function = getattr(module, f"{kernel}_kernel")
    compiled = triton.compile(
        _source(function, constants, DTYPES[dtype]), target=GPUTarget("cuda", capability, 32), options=options
    )
    usage = _resource_usage(compiled.asm["cubin"])
    return Resources(
        kernel, model, dtype, capability, options["num_warps"],
        registers=usage["REG"], shared_memory=compiled.metadata.shared, stack=usage["STACK"] + usage["LOCAL"],
    )  # fmt: skip


def _source(function: triton.JITFunction, constants: dict[str, object], dtype: str) -> ASTSource:
    """The kernel with the argument types of a launch: pointers and strides are multiples of 16 there."""
    types = {"rows": "*i64", "scale": "fp32"}
    types |= dict.fromkeys(("rotation", "slopes", "peaks", "totals", "partials"), "*fp32")
    types |= dict.fromkeys(("qkv", "cache", "out", "chunk_keys", "chunk_values"), f"*{dtype}")
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in function.arg_names}
    index = {name: (i,) for i, name in enumerate(function.arg_names)}
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name.endswith("_stride")]
    return ASTSource(
        function,
        signature,
        {index[name]: value for name, value in constants.items()},
        {index[name]: [["tt.divisibility", 16]] for name in aligned},
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """What cuobjdump says: " REG:128 STACK:0 SHARED:0 LOCAL:0 ..." as a dictionary."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    (line,) = [line for line in listing.splitlines() if "REG:" in line]
    return {name: int(value) for name, _, value in (word.partition(":") for word in line.split()) if value.isdigit()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=int, action="append", choices=SHARED_MEMORY_LIMIT, help="default: all")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: all")
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    options = parser.parse_args()
    table = []
    columns = list(Resources.__dataclass_fields__)
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for capability in options.arch or SHARED_MEMORY_LIMIT:
        for model in options.model or MODELS:
            for dtype in options.dtype or DTYPES:
                for kernel in KERNELS:
                    row = asdict(resources(kernel, model, dtype, capability))
                    table.append(row)
                    print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"triton": triton.__version__, "kernels": table}, indent=1) + "\n")
    spilled = [row for row in table if row["stack"] or row["shared_memory"] > SHARED_MEMORY_LIMIT[row["capability"]]]
    if spilled:
        sys.exit(f"{len(spilled)} of {len(table)} kernels spill registers or take more shared memory than there is")


if __name__ == "__main__":
    main()
