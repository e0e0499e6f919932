"""Each example runs as its own first lines say, against SmolLM2 on a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.server import Server, serving

pytestmark = [pytest.mark.triton, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"
PARIS = "The capital of France is Paris."
ROME = "The capital of Italy is Rome."


@pytest.fixture(scope="module")
def server(smollm2_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(smollm2_engine, tmp_path_factory.mktemp("server") / "log", "--openai-port", "0") as server:
        yield server


def run(name: str, argument: object, stdin: str = "") -> str:
    """What an example prints."""
    program = "sh" if name.endswith(".sh") else sys.executable
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    command = [program, EXAMPLES / name, str(argument)]
    done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_chat(smollm2_engine: Path) -> None:
    questions = "Which city is the capital of France?\nAnd of Italy?\n"
    assert run("python_chat.py", smollm2_engine, questions) == f"{PARIS}\n{ROME}\n"


def test_grpc_stream(server: Server) -> None:
    assert run("grpc_stream.py", server.grpc_url) == f"{PARIS}\n(stop, 8 tokens)\n"


def test_asyncio_client(server: Server) -> None:
    paris, tokyo, week = run("asyncio_client.py", server.grpc_url).splitlines()
    assert paris == PARIS
    assert "Tokyo" in tokyo
    assert "7 days" in week


def test_system_prompt(server: Server) -> None:
    """The prompt is in effect in both turns."""
    output = run("system_prompt.py", server.grpc_url)
    assert output.count("Aye") == output.count(" tokens)") == 2
    assert "Paris" in output


def test_openai_responses(server: Server) -> None:
    assert run("openai_responses.py", f"http://{server.openai_url}/v1") == f"{PARIS}\n{ROME}\n"


def test_curl(server: Server) -> None:
    first, *events = run("curl.sh", server.http_url).splitlines()
    assert json.loads(first)["text_output"] == PARIS
    responses = [json.loads(event.removeprefix("data: ")) for event in events if event]
    assert "".join(response["text_output"] for response in responses) == ROME
    assert [response["finish_reason"] for response in responses][-2:] == ["", "stop"]


def test_each_is_run() -> None:
    named = {path.stem for path in EXAMPLES.iterdir()}
    assert named == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {"each_is_run"}
