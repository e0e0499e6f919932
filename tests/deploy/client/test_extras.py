"""Without the packages of an extra, a command names the extra in one line."""

from __future__ import annotations

import sys

import pytest

from tests.command_line import run_in_process
from trtstream.deploy.client.terminal import talk
from trtstream.errors import TrtstreamError

INSTALL = "pip install 'trtstream[client]'"


@pytest.mark.parametrize("command", ["smoke", "bench", "chat"])
def test_a_client_without_tritonclient(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    result = run_in_process(command)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(
        "trtstream: a client of Triton needs tritonclient: pip install 'trtstream[client]' ("
    )
    assert len(result.stderr.splitlines()) == 1


def test_a_chat_in_a_terminal_without_prompt_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    with pytest.raises(
        TrtstreamError, match=r"chat in a terminal needs prompt_toolkit: pip install 'trtstream\[client\]'"
    ):
        talk(conversation=None)
