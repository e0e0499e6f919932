"""A gateway as a process of its own, with keys: tenants, limits, request ids, its log and its end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from click.testing import CliRunner

from tests.deploy.gateway.test_responses import OPTIONS
from tests.deploy.server import Server
from trtstream.deploy.gateway.access import Limits
from trtstream.deploy.gateway.admission import Shares
from trtstream.deploy.gateway.errors import ApiError
from trtstream.deploy.gateway.keys import KeyFile, add_key, read_keys, revoke_key
from trtstream.deploy.serving.gateway import gateway
from trtstream.errors import TrtstreamError

ORIGIN = "https://chat.example"


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(gateway, ["keys", *arguments, "--file", str(path)])
        assert result.exit_code == 0, result.output
        return result.stdout

    secrets = [run("add", tenant).strip() for tenant in ("acme", "acme", "other")]
    file, keys = KeyFile(path), read_keys(path)
    assert [file.find(secret) for secret in secrets] == keys
    assert [key.tenant for key in keys] == ["acme", "acme", "other"]
    assert [line.split()[0] for line in run("list").splitlines()] == [key.id for key in keys]
    assert not any(secret in path.read_text() for secret in secrets)
    assert path.stat().st_mode & 0o777 == 0o600
    run("revoke", keys[1].id)
    assert [file.find(secret) for secret in (*secrets, "", "\ud800")] == [keys[0], None, keys[2], None, None]
    for bad in ("", "a/b", "a" * 65):
        with pytest.raises(TrtstreamError, match="the tenant is"):
            add_key(path, bad)
    with pytest.raises(TrtstreamError, match="has no key 'key_0'"):
        revoke_key(path, "key_0")
    for damaged in ("{", "[]", '{"keys": [{"id": 1}]}'):
        path.write_text(damaged)
        with pytest.raises(TrtstreamError, match=r"keys\.json"):
            read_keys(path)


def test_shares() -> None:
    shares = Shares(Limits(requests_per_minute=3, max_turns=2))
    for _ in range(3):
        shares.take_request("acme")
    with pytest.raises(ApiError, match="more than 3 requests") as error:
        shares.take_request("acme")
    assert (error.value.status, error.value.response().headers["retry-after"]) == (429, "20")
    shares.take_request("other")
    with shares.turn("acme"):
        with shares.turn("acme"), pytest.raises(ApiError, match="which is your limit"), shares.turn("acme"):
            pass
        with shares.turn("acme"), shares.turn("other"):
            assert shares.running == 3
    assert shares.running == 0


@dataclass
class Process:
    process: subprocess.Popen[str]
    url: str
    key_file: Path
    log: Path

    def client(self, tenant: str) -> openai.OpenAI:
        _, secret = add_key(self.key_file, tenant)
        return openai.OpenAI(base_url=self.url, api_key=secret, max_retries=0)

    def logged_until(self, request_id: str) -> list[dict[str, Any]]:
        """The lines of the access log up to this request's, which comes after its answer."""
        lines: list[dict[str, Any]] = []
        while not lines or lines[-1]["request_id"] != request_id:
            time.sleep(0.01)
            complete = self.log.read_text().rpartition("\n")[0]
            lines = [json.loads(line) for line in complete.splitlines()]
        return lines


@pytest.fixture
def started(server: Server, store: str, tmp_path: Path) -> Iterator[Process]:
    """``trtstream gateway`` in front of the server's Triton."""
    keys, log = tmp_path / "keys.json", tmp_path / "access.log"
    add_key(keys, "nobody")
    options = ("--triton", server.grpc_url, "--port", "0", "--session-store", store)
    access = ("--api-key-file", str(keys), "--cors-origin", ORIGIN, "--access-log", str(log))
    command = [sys.executable, "-m", "trtstream", "gateway", *options, *access]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("ready: openai="), ready
        yield Process(process, f"http://{ready.split()[1].partition('=')[2]}/v1", keys, log)
        process.kill()


@pytest.mark.triton
def test_tenants_of_a_gateway(started: Process) -> None:
    """What one has does not exist for the other, whatever it knows of it."""
    acme, other = started.client("acme"), started.client("other")
    conversation = acme.conversations.create()
    said = acme.responses.create(input="Hello", conversation=conversation.id, **OPTIONS)
    alone = acme.responses.create(input="Hello", **OPTIONS)
    for ask in (other.responses.retrieve, other.responses.delete, other.responses.cancel):
        for response in (said, alone):
            with pytest.raises(openai.NotFoundError):
                ask(response.id)
    for method, path in (
        ("get", f"/responses/{alone.id}?stream=true&starting_after=0"),
        ("get", f"/conversations/{conversation.id}"),
        ("get", f"/conversations/{conversation.id}/items"),
        ("get", f"/conversations/{conversation.id}/items/{said.output[0].id}"),
        ("post", f"/conversations/{conversation.id}"),
        ("delete", f"/conversations/{conversation.id}"),
    ):
        with pytest.raises(openai.NotFoundError):
            getattr(other, method)(path, cast_to=object, **({"body": {"metadata": {}}} if method == "post" else {}))
    running = acme.responses.create(input="Hello", background=True, model="trtstream", max_output_tokens=4000)
    for ask in (other.responses.retrieve, other.responses.cancel, other.responses.delete):
        with pytest.raises(openai.NotFoundError):
            ask(running.id)
    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(running.id, stream=True)
    assert acme.responses.cancel(running.id).status in ("cancelled", "completed")
    for way in ({"previous_response_id": alone.id}, {"conversation": conversation.id}):
        with pytest.raises(openai.NotFoundError):
            other.responses.create(input="x", **way, **OPTIONS)
    with pytest.raises(openai.NotFoundError):
        list(other.responses.input_items.list(said.id))
    assert other.get("/conversations", cast_to=object)["data"] == []
    messages: list[Any] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": alone.output_text},
        {"role": "user", "content": "And?"},
    ]
    for client, known in ((acme, True), (other, False)):
        usage = client.chat.completions.create(model="trtstream", messages=messages, max_tokens=2).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert (usage.prompt_tokens_details.cached_tokens != 0) is known
    acme.responses.create(input="x", previous_response_id=alone.id, **OPTIONS)  # nothing has happened to it
    assert len(acme.conversations.items.list(conversation.id).data) == 2

    # Keys count at once, and the log says who asked, without what.
    with pytest.raises(openai.AuthenticationError, match="API key is missing or not valid"):
        openai.OpenAI(base_url=started.url, api_key="none", max_retries=0).models.list()
    key = next(key for key in read_keys(started.key_file) if key.tenant == "other")
    revoke_key(started.key_file, key.id)
    with pytest.raises(openai.AuthenticationError) as refused:
        other.models.list()
    lines = started.logged_until(refused.value.response.headers["x-request-id"])
    assert lines[-1]["status"] == 401
    foreign = next(line for line in lines if line["method"] == "GET" and line["status"] == 404)
    assert (foreign["route"], foreign["tenant"], foreign["key"]) == ("/v1/responses/{id}", "other", key.id)
    assert not any(text in started.log.read_text() for text in ("Hello", said.id, conversation.id, acme.api_key))

    for origin, allowed in ((ORIGIN, ORIGIN), ("https://other.example", None)):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        answer = httpx.options(f"{started.url}/responses", headers=headers, trust_env=False)
        assert answer.headers.get("access-control-allow-origin") == allowed

    started.process.terminate()
    assert started.process.wait(60) == 0


def test_a_gateway_waits_for_its_triton(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trtstream", "gateway", "--triton", "127.0.0.1:1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting for Triton at 127.0.0.1:1\n"
        time.sleep(0.1)
        process.terminate()
        assert process.communicate(timeout=60)[0] == ""
        assert process.returncode == 0
