from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import run_trtstream
from tests.pages import shown_conversation
from trtstream.deploy.client.client import Client
from trtstream.errors import TrtstreamError


@pytest.mark.slow
@pytest.mark.triton
def test_quickstart_serves_until_it_is_stopped(smollm2_gguf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trtstream", "quickstart", "--keep-running"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # as a user has it
    stdout, stderr = tmp_path / "stdout", tmp_path / "stderr"
    with stdout.open("w") as out, stderr.open("w") as err:
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=err)
    try:
        while run.poll() is None and "Ctrl-C stops it" not in stderr.read_text():
            try:
                run.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        url = re.search(r"serving on (\S+):", stderr.read_text())[1]
        with Client(url) as client:
            assert all(client.health().values())
        questions, answers = shown_conversation()
        assert run_trtstream("chat", "--url", url, stdin="\n".join(questions)).stdout.splitlines() == answers
    finally:
        run.send_signal(signal.SIGTERM)
        status = run.wait(90)
    assert status == 0
    with Client(url) as client, pytest.raises(TrtstreamError, match="no Triton gRPC service answers"):
        client.health()

    transcript = stdout.read_text()
    assert "> Which city is the capital of France?\nThe capital of France is Paris.\n" in transcript
    assert (
        transcript.count("> What is the secret word?\nThe secret word is banana.\n") == 2
    )  # the second after the kill
    assert "SmolLM2-135M-Instruct on this machine" in transcript
    commands = re.findall(r"^\$ trtstream (\w+)", stderr.read_text(), re.MULTILINE)
    assert commands == ["build", "package", "serve", "smoke", "bench", "chat", "serve", "chat", "chat"]
    assert re.search(r"^\$ kill -9 \d+ \d+ \d+", stderr.read_text(), re.MULTILINE)
    levels = json.loads((tmp_path / "quickstart" / "bench.json").read_text())["levels"]
    assert [(level["concurrency"], level["errors"]) for level in levels] == [(1, 0), (4, 0)]
