"""Opens an engine directory: checks that it can run here, and picks its target's runtime."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from trtstream.engine_dir import KERNEL, WEIGHTS, EngineConfig, memory_plan, read_engine, verify_files
from trtstream.errors import TrtstreamError
from trtstream.plugins.cpu_kernel import DecodeKernel, cpu_flags
from trtstream.runtime.cpu import CpuEngine
from trtstream.runtime.decoder import collect_weights
from trtstream.runtime.engine import Engine


def load_engine(folder: str | Path) -> Engine:
    """Load an engine for this process. Raises TrtstreamError in one line if it is damaged or cannot run here."""
    folder = Path(folder)
    config = read_engine(folder)
    if config.target != "cpu":
        raise TrtstreamError(f"{folder} was built for target {config.target!r}; this trtstream runs: cpu")
    missing = sorted(set(config.toolchain.get("instruction_sets", ())) - cpu_flags())
    if missing:
        raise TrtstreamError(f"{folder} needs a CPU with {', '.join(missing)}; build it again on this machine")
    _check_memory(folder, config)
    verify_files(folder, config)
    kernel = DecodeKernel(folder / KERNEL, config.pretrained_config, config.build_config)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        weights = collect_weights(config.pretrained_config, set(file.keys()), file.get_tensor, pack=True)
    return CpuEngine(config.pretrained_config, config.build_config, weights, kernel)


def _check_memory(folder: Path, config: EngineConfig) -> None:
    plan = memory_plan(folder, config)
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:"))
    if plan["total_bytes"] > available:
        raise TrtstreamError(
            f"{folder} needs {plan['weights_bytes'] / 1e9:.2f} GB for weights and "
            f"{plan['kv_cache_bytes'] / 1e9:.2f} GB for {config.build_config.max_batch_size} sessions, and "
            f"{available / 1e9:.2f} GB are free; build with a smaller --max-batch-size or window"
        )
