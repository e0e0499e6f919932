"""Loading TensorRT engines where they cannot run: one line says what is missing, before anything is started."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.command_line import run_in_process
from tests.runtime.clients import byte_tokenizer
from trtstream.build.checkpoint import open_checkpoint
from trtstream.build.tensorrt.engine import build_tensorrt_engine
from trtstream.engine_dir import ENGINE, read_engine
from trtstream.errors import TrtstreamError
from trtstream.plugins.cuda_device import why_no_gpu
from trtstream.plugins.kv_cache import kv_bytes_per_session
from trtstream.runtime.loading import check_memory, load_engine
from trtstream.settings import BuildConfig

pytestmark = pytest.mark.builder

no_gpu = pytest.mark.skipif(why_no_gpu() is None, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorrt")
    write_checkpoint(folder / "checkpoint", "llama-gqa", num_hidden_layers=1, vocab_size=260)
    byte_tokenizer().save_pretrained(folder / "checkpoint")
    checkpoint = open_checkpoint(folder / "checkpoint")
    build = BuildConfig(max_batch_size=2, max_num_tokens=8, max_attention_window=32, dtype="float16")
    build_tensorrt_engine("tensorrt-rtx", checkpoint, build, folder / "engine", lambda done, total: None)
    return folder / "engine"


@no_gpu
def test_loading_without_a_gpu_is_refused_in_one_line(folder: Path) -> None:
    expected = f"{folder} was built for target 'tensorrt-rtx' and cannot run here: {why_no_gpu()}"
    with pytest.raises(TrtstreamError, match=f"^{re.escape(expected)}$") as refused:
        load_engine(folder)
    assert "\n" not in str(refused.value)


@no_gpu
@pytest.mark.parametrize(
    "arguments",
    [("serve", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"), ("eval", "--text", __file__)],
    ids=["serve", "eval"],
)
def test_commands_refuse_it_before_they_start(folder: Path, arguments: tuple[str, ...]) -> None:
    command, *options = arguments
    done = run_in_process(command, folder, *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "target 'tensorrt-rtx' and cannot run here: torch" in done.stderr


def test_weights_inside_the_plan_count(folder: Path) -> None:
    config = read_engine(folder)
    caches = 2 * kv_bytes_per_session(config.pretrained_config, config.build_config, "tensorrt-rtx")
    needed = (folder / ENGINE).stat().st_size + caches
    check_memory(folder, config, needed)
    with pytest.raises(TrtstreamError, match=r"needs 0\.\d\d GB for weights and 0\.\d\d GB for 2 sessions"):
        check_memory(folder, config, needed - 1)
