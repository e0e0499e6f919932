"""A user's first day: an environment with nothing in it, the wheel, and a model that answers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.release import ROOT, outside, run_outside


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(1200)
def test_smollm2_is_served_from_the_wheel_alone(wheel: Path, smollm2_gguf: Path, tmp_path: Path) -> None:
    """In a fresh environment that pip fills: what the extras name is all it takes."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    constraints = ROOT / "constraints.txt"
    run_outside(environment, tmp_path, "pip", "install", "--quiet", "-c", constraints, f"{wheel}[server,gguf]")

    build = ["build", smollm2_gguf, "--output", "engine", "--target", "cpu", "--max-attention-window", 512]
    # With activations of 8 bits so small a model is near a tie between "The capital" and French.
    run_outside(environment, tmp_path, "trtstream", *build, "--dtype", "float32")
    assert "512" in run_outside(environment, tmp_path, "trtstream", "inspect", "engine")
    run_outside(environment, tmp_path, "trtstream", "package", "engine", "--output", "repository")
    serve = ["serve", "repository", "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [environment / "bin" / "trtstream", *serve]
    with (
        (tmp_path / "server.log").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, env=outside(), stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            ready = re.search(r"grpc=(\S+)", server.stdout.readline())
            assert ready, (tmp_path / "server.log").read_text()
            run_outside(environment, tmp_path, "trtstream", "smoke", "--url", ready[1])
            question = "What is the capital of France?\n"
            chat = run_outside(environment, tmp_path, "trtstream", "chat", "--url", ready[1], stdin=question)
            assert "Paris" in chat
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(90)
    assert status == 0
