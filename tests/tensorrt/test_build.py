"""TensorRT engines by TensorRT-RTX's own builder, which needs no GPU; and builds that fail or are stopped."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tensorrt_rtx as trt
import torch

from tests.checkpoints import VARIANTS, write_checkpoint
from tests.command_line import run_in_process, run_trtstream
from trtstream.build.checkpoint import Checkpoint, open_checkpoint
from trtstream.build.memory import estimate_memory
from trtstream.build.tensorrt.builder import builder_config
from trtstream.build.tensorrt.engine import build_tensorrt_engine
from trtstream.build.tensorrt.network import define_network
from trtstream.build.tensorrt.weights import staged_weights, tensorrt_weights
from trtstream.engine_dir import ENGINE, engine_memory, read_engine, verify_files
from trtstream.errors import TrtstreamError
from trtstream.plugins.tensorrt_library import why_not_built_with
from trtstream.settings import BuildConfig

pytestmark = pytest.mark.builder

BUILD = BuildConfig(max_batch_size=2, max_num_tokens=8, max_attention_window=32, dtype="float16")
KERNELS = 12_000_000  # bytes of a small plan, at most, that are not weights
# Their networks have the layers of llama-rope-yarn, with other constants, and of llama-head-dim.
SAME_LAYERS = ("llama-rope-linear", "llama-rope-dynamic", "llama-rope-llama3", "mistral")
DTYPES = {"llama-gqa": "bfloat16", "falcon-7b": "bfloat16", "llama-mqa": "float32"}


def quiet(done: int, total: int) -> None:
    pass


@pytest.mark.quick("llama-gqa", "falcon-rw")
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in SAME_LAYERS])
def test_every_variant_builds(variant: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", variant, num_hidden_layers=2))
    build = replace(BUILD, dtype=DTYPES.get(variant, "float16"))
    shares: list[float] = []

    def progress(done: int, total: int) -> None:
        shares.append(done / total)

    build_tensorrt_engine("tensorrt-rtx", checkpoint, build, tmp_path / "engine", progress)
    config = read_engine(tmp_path / "engine")
    verify_files(tmp_path / "engine", config)
    assert (config.target, set(config.files)) == ("tensorrt-rtx", {ENGINE})
    assert config.toolchain["tensorrt_rtx"] == trt.__version__
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)

    estimate, built = estimate_memory(checkpoint, build, "tensorrt-rtx"), engine_memory(tmp_path / "engine", config)
    assert estimate.weights < built.weights < estimate.weights + KERNELS
    assert estimate.kv_cache_per_session == built.kv_cache_per_session


@pytest.mark.slow
def test_quantized_plans_are_as_small_as_estimated(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 8}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", "llama-gqa", **sizes))
    planned, built = {}, {}
    for quantization in ("none", "int8", "int4"):
        build = replace(BUILD, quantization=quantization)
        build_tensorrt_engine("tensorrt-rtx", checkpoint, build, tmp_path / quantization, quiet)
        planned[quantization] = estimate_memory(checkpoint, build, "tensorrt-rtx").weights
        built[quantization] = (tmp_path / quantization / ENGINE).stat().st_size
    assert planned["int8"] < 0.52 * planned["none"]
    assert planned["int4"] < 0.3 * planned["none"]
    for quantization in ("int8", "int4"):
        saved = built["none"] - built[quantization]
        dequantizing = 1_500_000  # bytes of kernels that do it
        assert saved == pytest.approx(planned["none"] - planned[quantization], abs=dequantizing)


def test_columns_that_int4_cannot_take_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", "falcon-7b"))  # hidden_size 40
    build = replace(BUILD, quantization="int4")
    with pytest.raises(TrtstreamError, match="qkv has 40 columns, and int4 takes multiples of 32; use --quantization"):
        build_tensorrt_engine("tensorrt-rtx", checkpoint, build, tmp_path / "engine", quiet)
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_staged_weights_are_mapped_and_leave_nothing(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", "llama-bias", vocab_size=300_000))
    work = tmp_path / "work"
    work.mkdir()
    before = anonymous_memory()
    staged = staged_weights(tensorrt_weights(checkpoint, BUILD), work, quiet)
    assert os.listdir(work) == []
    assert sum(tensor.nbytes for tensor in staged.values()) > 70e6
    for name in checkpoint.tensor_names():
        assert torch.equal(staged[name], checkpoint.tensor(name).half())
        assert staged[name].data_ptr() % 2 == 0
    assert anonymous_memory() - before < 40e6


def anonymous_memory() -> int:
    """Bytes of this process's memory that are not a mapped file."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024


@pytest.mark.slow
def test_smollm2_in_float16(smollm2_gguf: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    done = run_trtstream("build", smollm2_gguf, "--output", engine, "--target", "tensorrt-rtx", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(
        rf"{engine}: (\d+\.\d) MB for target tensorrt-rtx in \d+\.\d s, (\d+\.\d) GB of memory at most", last
    )
    assert found
    config = read_engine(engine)
    assert {ENGINE, "tokenizer/tokenizer.json"} <= set(config.files)
    planned = estimate_memory(open_checkpoint(smollm2_gguf), config.build_config, "tensorrt-rtx")
    size = (engine / ENGINE).stat().st_size
    assert planned.weights < size < 1.2 * planned.weights
    assert float(found[1]) * 1e6 > size
    assert float(found[2]) * 1e9 < 1.5 * planned.build
    assert "Building: " in done.stderr


def test_the_workspace_is_estimated(tmp_path: Path) -> None:
    """TensorRT-RTX's builder logs the types that a plan's calls compute in."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", "llama-gqa", num_hidden_layers=2, **sizes))
    build = replace(BUILD, max_num_tokens=256, max_attention_window=512)
    found = logged_activations(checkpoint, build)
    estimate = estimate_memory(checkpoint, build, "tensorrt-rtx").workspace
    assert estimate is not None
    assert 0.5 * estimate < found < 1.2 * estimate


def logged_activations(checkpoint: Checkpoint, build: BuildConfig) -> int:
    logged: list[int] = []

    class Logger(trt.ILogger):
        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            if found := re.search(r"Total Activation Memory: (\d+) bytes", message):
                logged.append(int(found[1]))

    builder = trt.Builder(Logger())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    weights = {name: checkpoint.tensor(name).half() for name in checkpoint.tensor_names()}
    memory = define_network(trt, network, checkpoint.model, build, "tensorrt-rtx", weights)
    config = builder_config(trt, builder, checkpoint.model, build, "tensorrt-rtx")
    assert builder.build_serialized_network(network, config)
    assert memory
    return max(logged)


def build_command(checkpoint: Path, engine: Path, *options: object) -> list[str]:
    words = "build", checkpoint, "--output", engine, "--target", "tensorrt-rtx", "--dtype", "float16", *options
    return [sys.executable, "-m", "trtstream", *map(str, words)]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(stop: signal.Signals, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-gqa", num_hidden_layers=20)
    command = build_command(checkpoint, tmp_path / "engine")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            builder_works = False  # in the second half of the progress
            while not builder_works:
                progress = re.match(r"Building: (\d+) of (\d+)", process.stderr.readline())
                assert process.poll() is None
                builder_works = progress is not None and int(progress[1]) > int(progress[2]) / 2
            assert list(tmp_path.glob(f".engine.*/{ENGINE}"))
            process.send_signal(stop)
            stderr = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode != 0
    assert "stopping TensorRT's builder" in stderr
    assert "Traceback" not in stderr
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-gqa", num_hidden_layers=1, vocab_size=4000)
    planned = estimate_memory(open_checkpoint(checkpoint), BUILD, "tensorrt-rtx").weights

    def small_files() -> None:  # the weights fit, the plan does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (planned + 50_000, planned + 50_000))

    command = build_command(checkpoint, tmp_path / "engine")
    done = subprocess.run(command, preexec_fn=small_files, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"trtstream: cannot write {tmp_path / 'engine'}: File too large"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_what_the_builder_refuses_is_one_line_with_its_reason(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama-gqa", num_hidden_layers=1)
    command = build_command(checkpoint, tmp_path / "engine", "--max-batch-size", 2**31 - 1)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("trtstream: TensorRT cannot build this engine: ")
    assert "tensor volume exceeds" in error
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_the_library_nothing_is_read_or_written(tmp_path: Path) -> None:
    done = run_in_process("build", tmp_path / "nothing", "--output", tmp_path / "engine", "--target", "tensorrt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "trtstream: target tensorrt needs the library tensorrt: pip install 'trtstream[tensorrt]' "
        "(on the machine with the NVIDIA GPU; pip fetches it from NVIDIA)\n"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("__version__ = '10.9.0.34'", "tensorrt 10.9.0.34 is too old, and at least 10.15 is needed: pip install "),
        (
            "import ctypes; ctypes.CDLL('libnvinfer.so.10')",
            "tensorrt cannot be imported (libnvinfer.so.10: cannot open shared object file: No such file or "
            "directory); install it again: pip install ",
        ),
    ],
    ids=["old", "broken"],
)
def test_a_library_that_does_not_serve_is_told(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text(source + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_trtstream("build", "nothing", "--output", tmp_path / "engine", "--target", "tensorrt")
    assert done.returncode == 1
    assert done.stderr.startswith(f"trtstream: {message}")
    assert done.stderr.count("\n") == 1


def test_damaged_engines_and_those_of_other_versions_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", "llama-gqa", num_hidden_layers=1))
    config = build_tensorrt_engine("tensorrt-rtx", checkpoint, BUILD, tmp_path / "engine", quiet)
    plan = tmp_path / "engine" / ENGINE
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    with pytest.raises(TrtstreamError, match=r"rank0\.engine is damaged"):
        verify_files(tmp_path / "engine", config)
    plan.unlink()
    with pytest.raises(TrtstreamError, match=r"lacks rank0\.engine; rebuild"):
        read_engine(tmp_path / "engine")
    assert why_not_built_with("tensorrt-rtx", config.toolchain) is None
    refusal = why_not_built_with("tensorrt-rtx", {**config.toolchain, "tensorrt_rtx": "1.0"})
    assert refusal is not None
    assert "runs its own engines only, and 1.0 built this one" in refusal
