"""Registers, shared memory and stack of the cuda target's kernels as machine code, without a GPU.

    python -m benchmarks.kernel_resources [--json FILE] [--arch 80 --arch 90 ...] [--kv-dtype int8 ...]

Compiles each kernel for each compute capability, model and number format exactly as the runtime launches it, and prints
a table. Spilled registers go to the stack, so it should be empty. Needs torch and triton; no kernel runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from benchmarks import write_json
from benchmarks.markdown import table
from benchmarks.models import FALCON_7B, FALCON_RW_1B, LLAMA_2_7B, LLAMA_3_8B, SMOLLM2
from trtstream.plugins import cuda_chain, cuda_decode, cuda_matvec, cuda_prefill
from trtstream.plugins.cuda_device import FP8_CAPABILITY
from trtstream.plugins.kv_cache import cache_dtype
from trtstream.settings import ModelConfig

# Bytes of shared memory that a block may take, by compute capability (CUDA C++ Programming Guide, table of technical
# specifications; of the supported ones, sm_86, sm_89 and sm_120 have the least).
SHARED_MEMORY_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 120: 99 * 1024}
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
KV_DTYPES = {"int8": "i8", "fp8": "fp8e4nv"}
WINDOW, MAX_SINKS = 1024, 4


MODELS = {
    "Llama-2-7B": LLAMA_2_7B,
    "Llama-3-8B": LLAMA_3_8B,
    "SmolLM2-135M": SMOLLM2,
    "Falcon-7B": FALCON_7B,
    "Falcon-RW-1B": FALCON_RW_1B,
}
MATVECS = {"matvec": 1, "matvec, 8 tokens": 8}
KERNELS = ("decode", "prefill", *MATVECS)


@dataclass(frozen=True)
class Resources:
    """The resources of one kernel: registers and stack bytes per thread, shared memory bytes per block."""

    kernel: str
    model: str
    dtype: str
    kv_dtype: str
    capability: int
    num_warps: int
    registers: int
    shared_memory: int
    stack: int


def resources(kernel: str, model: str, dtype: str, kv_dtype: str, capability: int) -> Resources:
    """Compile a kernel of `KERNELS` and read its machine code's resources."""
    compiled = compile_kernel(kernel, model, dtype, kv_dtype, capability)
    usage = _resource_usage(compiled.asm["cubin"])
    return Resources(
        kernel, model, dtype, kv_dtype, capability, compiled.metadata.num_warps,
        registers=usage["REG"], shared_memory=compiled.metadata.shared, stack=usage["STACK"] + usage["LOCAL"],
    )  # fmt: skip


def compile_kernel(kernel: str, model: str, dtype: str, kv_dtype: str, capability: int) -> CompiledKernel:
    """``decode`` has its cache split over programs; ``matvec`` is the MLP's first product, around which most is
    computed."""
    sizes = MODELS[model]
    if kernel in MATVECS:
        function, constants = cuda_matvec.matvec_kernel, _matvec_constants(sizes, MATVECS[kernel], dtype)
    else:
        module = {"decode": cuda_decode, "prefill": cuda_prefill}[kernel]
        function = getattr(module, f"{kernel}_kernel")
        constants = getattr(module, f"{kernel}_constants")(
            sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim, WINDOW, MAX_SINKS,
            getattr(torch, dtype), cache_dtype(kv_dtype),
        )  # fmt: skip
        constants["slopes" if sizes.rope else "rotation"] = None
        if kernel == "decode":
            constants["SPLIT"] = True
        if kv_dtype == dtype:
            constants |= {name: None for name in function.arg_names if name.endswith("scales")}
    if "CHAINED" in function.arg_names:
        constants["CHAINED"] = divmod(capability, 10) >= cuda_chain.CAPABILITY
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    types = DTYPES | KV_DTYPES
    source = _source(function, constants, types[dtype], types[kv_dtype])
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _matvec_constants(sizes: ModelConfig, tokens: int, dtype: str) -> dict[str, Any]:
    gated, layer_norm = sizes.gated_mlp, sizes.norm == "layer"
    tiles = cuda_matvec.matvec_constants(tokens, sizes.intermediate_size, gated=gated, dtype=getattr(torch, dtype))
    constants = {"LAYER_NORM": layer_norm, "ACTIVATION": sizes.hidden_act, "GATED": gated, "bias": None}
    return tiles | constants | {"residual": None} | ({} if layer_norm else {"norm_bias": None})


def _source(function: triton.JITFunction, constants: dict[str, Any], dtype: str, kv_dtype: str) -> ASTSource:
    """The kernel with the argument types of a launch, where pointers, strides and sizes are multiples of 16."""
    types = {"rows": "*i64", "chunk": "*i64", "arrivals": "*i32", "scale": "fp32", "eps": "fp32"}
    types |= dict.fromkeys(("rotation", "slopes", "peaks", "totals", "partials", "scales", "chunk_scales"), "*fp32")
    types |= dict.fromkeys(("cache", "chunk_keys", "chunk_values"), f"*{kv_dtype}")
    types |= dict.fromkeys(("qkv", "out", "x", "weight", "norm_weight", "norm_bias"), f"*{dtype}")
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in function.arg_names}
    index = {name: (i,) for i, name in enumerate(function.arg_names)}
    multiples = ("_stride", "num_inputs", "num_outputs")
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name.endswith(multiples)]
    return ASTSource(
        function,
        signature,
        {index[name]: value for name, value in constants.items()},
        {index[name]: [["tt.divisibility", 16]] for name in aligned},
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """cuobjdump's " REG:128 STACK:0 SHARED:0 LOCAL:0 ..." as a dictionary."""
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
    parser.add_argument("--kv-dtype", action="append", choices=["none", *KV_DTYPES], help="default: all")
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    options = parser.parse_args()
    formats = product(options.dtype or DTYPES, options.kv_dtype or ["none", *KV_DTYPES])
    cells = product(options.arch or SHARED_MEMORY_LIMIT, options.model or MODELS, formats, KERNELS)
    rows = []
    for capability, model, (dtype, kv_dtype), kernel in cells:
        if kv_dtype != "none" and kernel in MATVECS:
            continue  # it has no KV cache
        if kv_dtype == "fp8" and divmod(capability, 10) < FP8_CAPABILITY:
            continue
        rows.append(asdict(resources(kernel, model, dtype, dtype if kv_dtype == "none" else kv_dtype, capability)))
        print(*rows[-1].values(), file=sys.stderr)
    print(table(rows))
    write_json(options.json, {"triton": triton.__version__, "kernels": rows})
    spilled = [row for row in rows if row["stack"] or row["shared_memory"] > SHARED_MEMORY_LIMIT[row["capability"]]]
    if spilled:
        sys.exit(f"{len(spilled)} of {len(rows)} kernels spill registers or take more shared memory than there is")


if __name__ == "__main__":
    main()
