"""The options that `build_engine` gives to trtllm-build, and how it runs it: here a script of these tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trtstream.build.tensorrt_llm.build_command import build_arguments, build_engine, find_trtllm_build
from trtstream.build.tensorrt_llm.releases import RELEASES, Release, find_release
from trtstream.errors import TrtstreamError
from trtstream.settings import BuildConfig, ModelConfig, RopeConfig, TensorrtLlmOptions

OPTIONS = Path(__file__).parent / "trtllm_build_options"
BUILD = BuildConfig(max_attention_window=512, sink_token_length=4, max_sink_token_length=4, dtype="bfloat16")
MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=2048,
    norm="rms",
    norm_eps=1e-5,
    hidden_act="silu",
    gated_mlp=True,
    residual="sequential",
    shared_norm=False,
    tie_word_embeddings=False,
    rope=RopeConfig(),
    bos_token_id=1,
    eos_token_ids=(2,),
)
TRTLLM_BUILD = """\
#!{python}
import json, os, subprocess, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
json.dump(options, open("{record}", "w"))
output = options["--output_dir"]
os.makedirs(output)
for rank in range({ranks}):
    print(f"[TRT-LLM] [I] building rank {{rank}}")
    {in_the_middle}
    open(os.path.join(output, f"rank{{rank}}.engine"), "w").write("engine")
json.dump({{}}, open(os.path.join(output, "config.json"), "w"))
print("[TRT-LLM] [I] Total time of building all engines: 00:00:01")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``install(version, in_the_middle="pass", ranks=1)``: a trtllm-build on PATH; returns its record of options."""

    def install(version: str, in_the_middle: str = "pass", ranks: int = 1) -> Path:
        distribution = tmp_path / "site" / f"tensorrt_llm-{version}.dist-info"
        distribution.mkdir(parents=True)
        (distribution / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt-llm\nVersion: {version}\n")
        monkeypatch.setenv("PYTHONPATH", str(distribution.parent))
        record = tmp_path / "options.json"
        program = tmp_path / "bin" / "trtllm-build"
        program.parent.mkdir()
        program.write_text(
            TRTLLM_BUILD.format(python=sys.executable, record=record, ranks=ranks, in_the_middle=in_the_middle)
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        return record

    return install


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An engine directory in the making, with a converted checkpoint."""
    (tmp_path / "engine directory" / "checkpoint").mkdir(parents=True)
    return tmp_path / "engine directory"


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
@pytest.mark.parametrize("sinks", [0, 4])
def test_arguments_against_the_releases_own_options(release: Release, sinks: int) -> None:
    """No unknown option, and none missing that has no default in a release or that StreamingLLM needs."""
    known = {f"--{name}" for name in json.loads((OPTIONS / f"{release.name}.json").read_text())["trtllm_build"]}
    arguments = build_arguments(MODEL, replace(BUILD, sink_token_length=sinks), release)
    assert not set(arguments) - known
    lengths = {"--max_output_len": "1536"} if release.name == "0.10" else {"--max_seq_len": "2048"}
    assert arguments == {
        "--checkpoint_dir": "checkpoint",
        "--max_batch_size": "8",
        "--max_input_len": "512",
        **lengths,
        "--max_num_tokens": "520",
        "--gpt_attention_plugin": "bfloat16",
        "--gemm_plugin": "bfloat16",
        "--context_fmha": "enable",
        "--use_paged_context_fmha": "disable",
        **({"--streamingllm": "enable"} if sinks else {}),
    }


def test_every_release_has_its_options_transcribed() -> None:
    assert sorted(path.stem for path in OPTIONS.iterdir()) == [release.name for release in RELEASES]


def test_lengths() -> None:
    release = RELEASES[-1]
    long = replace(BUILD, tensorrt_llm=TensorrtLlmOptions(max_seq_len=100_000), max_num_tokens=8192)
    arguments = build_arguments(MODEL, long, release)
    assert (arguments["--max_seq_len"], arguments["--max_num_tokens"]) == ("100000", "8192")
    whole_context = replace(BUILD, max_attention_window=2048)
    assert build_arguments(MODEL, whole_context, release)["--max_seq_len"] == "4096"
    with pytest.raises(TrtstreamError, match="max_seq_len is 512, which leaves no room for an answer"):
        replace(BUILD, tensorrt_llm=TensorrtLlmOptions(max_seq_len=512)).validate("tensorrt-llm")


def test_without_trtllm_build(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("PATH", "")
    assert build_engine(folder, MODEL, BUILD, find_release("0.17"), lambda done, total: None) is None
    assert "trtllm-build is not on PATH: run build.sh" in capsys.readouterr().err
    script = (folder / "build.sh").read_text()
    assert "nvcr.io/nvidia/tritonserver:25.01-trtllm-python-py3" in script
    assert "--streamingllm enable" in script
    assert not (folder / "engine").exists()


def test_a_build(folder: Path, install, capsys: pytest.CaptureFixture) -> None:
    record = install("0.17.0.post1", ranks=2)
    calls: list[tuple[int, int]] = []
    build = replace(BUILD, tensorrt_llm=TensorrtLlmOptions(tp_size=2))
    version = build_engine(folder, MODEL, build, find_release("0.17"), lambda done, total: calls.append((done, total)))
    assert version == "0.17.0.post1"
    expected = {**build_arguments(MODEL, build, find_release("0.17")), "--output_dir": "engine"}
    assert json.loads(record.read_text()) == expected
    assert calls[0] == (0, 2)
    assert calls[-1] == (2, 2)
    assert "[TRT-LLM] [I] building rank 1\n" in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "engine").iterdir()) == [
        "config.json",
        "rank0.engine",
        "rank1.engine",
    ]


def test_build_sh_gives_the_same_options(folder: Path, install) -> None:
    record = install("1.0.0")
    (folder / "engine.new").mkdir()  # left by a run that was cut short
    build_engine(folder, MODEL, BUILD, find_release("0.17"), lambda done, total: None)
    subprocess.run(["sh", folder / "build.sh"], check=True, cwd="/")
    expected = {**build_arguments(MODEL, BUILD, find_release("0.17")), "--output_dir": "engine.new"}
    assert json.loads(record.read_text()) == expected
    assert sorted(path.name for path in folder.iterdir()) == ["build.sh", "checkpoint", "engine"]


def test_another_release_than_the_installed_one(folder: Path, install, capsys: pytest.CaptureFixture) -> None:
    record = install("0.12.0")
    assert build_engine(folder, MODEL, BUILD, find_release("1.0"), lambda done, total: None) is None
    assert "the checkpoint is for TensorRT-LLM 1.0 and " in capsys.readouterr().err
    assert not record.exists()


def test_a_release_without_sinks(folder: Path, install) -> None:
    record = install("1.2.0")
    with pytest.raises(TrtstreamError, match=r"1\.2\.0 has no attention sinks.*use --target tensorrt"):
        build_engine(folder, MODEL, BUILD, find_release("1.0"), lambda done, total: None)
    assert not record.exists()


@pytest.mark.parametrize(
    ("in_the_middle", "message"),
    [
        (
            "raise AssertionError('StreamingLLM is only supported in the llama model.')",
            "exited with code 1 with 0 of 1 ranks built; its last error: AssertionError: StreamingLLM is only",
        ),
        (
            "print('[TRT-LLM] [E] out of memory'); print('[TRT-LLM] [I] bye'); sys.exit(3)",
            "exited with code 3 with 0 of 1 ranks built; its last error: [TRT-LLM] [E] out of memory",
        ),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL with 0 of 1 ranks built; its last error: [TRT-LLM] [I] bui"),
        ("sys.exit(0)", "exited with code 0 with 0 of 1 ranks built"),
    ],
    ids=["traceback", "logged error", "killed", "no engine"],
)
def test_a_build_that_fails(folder: Path, install, in_the_middle: str, message: str) -> None:
    install("1.0.0", in_the_middle)
    with pytest.raises(TrtstreamError) as raised:
        build_engine(folder, MODEL, BUILD, find_release("1.0"), lambda done, total: None)
    assert f"trtllm-build 1.0.0 {message}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_version_that_cannot_be_told(tmp_path: Path, install) -> None:
    install("1.0.0")
    for first_line in ("#!/no/such/python", "\x7fELF", "#!/bin/false"):
        (tmp_path / "bin" / "trtllm-build").write_text(first_line + "\n")
        with pytest.raises(TrtstreamError, match=r"cannot tell the version of .*trtllm-build"):
            find_trtllm_build()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_build_and_its_workers(
    tmp_path: Path, folder: Path, install, number: signal.Signals
) -> None:
    """trtllm-build hangs, and so does its worker; both are gone afterwards, and so are the files."""
    pids = tmp_path / "pids"
    install(
        "1.0.0",
        "worker = subprocess.Popen(['sleep', '600']); "
        f"open('{pids}', 'w').write(f'{{os.getpid()}} {{worker.pid}}'); os.rename('{pids}', '{pids}.whole'); "
        "time.sleep(600)",
    )
    script = f"""
import signal, sys
from pathlib import Path
from tests.build.test_tensorrt_llm_build import BUILD, MODEL
from trtstream.build.tensorrt_llm.build_command import build_engine
from trtstream.build.tensorrt_llm.releases import find_release
from trtstream.engine_dir import new_directory
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
with new_directory(Path({str(tmp_path / "output")!r})) as folder:
    build_engine(folder, MODEL, BUILD, find_release("1.0"), lambda done, total: None)
"""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(root)])
    building = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path})
    wait_for(lambda: (tmp_path / "pids.whole").exists())
    building.send_signal(number)
    assert building.wait(60) != 0
    for pid in (tmp_path / "pids.whole").read_text().split():
        wait_for(lambda pid=pid: not running(int(pid)))
    assert not (tmp_path / "output").exists()
    assert not list(tmp_path.glob(".output*"))


def wait_for(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within 30 s")


def running(pid: int) -> bool:
    """Neither gone nor a zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
