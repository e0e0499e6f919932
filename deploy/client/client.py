"""The client of a model that ``trtstream package`` wrote. The server keeps its sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from trtstream.deploy.client.checks import CHECKS
from trtstream.deploy.client.tensors import request_tensors, response_values
from trtstream.deploy.client.triton import DEFAULT_URL, Check, Response, TritonClient
from trtstream.deploy.contract import routing_headers

DEFAULT_MODEL = "trtstream"


class Client(TritonClient):
    """See `TritonClient`. ``session_id`` names a session that the server remembers between turns."""

    checks: ClassVar[Mapping[str, Check | str]] = CHECKS

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model_name: str = DEFAULT_MODEL,
        tls_ca: Path | None = None,
        *,
        timeout: float = 120.0,
    ) -> None:
        super().__init__(url, model_name, tls_ca, timeout=timeout)

    def generate(self, *, request_id: str = "", **inputs: Any) -> Generator[Response, None, None]:
        """As `TritonClient.generate`. A request that is sent again with its ``request_id`` gets its answer again."""
        tensors, model = request_tensors(inputs), f"{self.model_name!r} at {self.url}"
        headers = routing_headers(inputs.get("session_id") or "")
        with contextlib.closing(self._stream(self.model_name, tensors, request_id, headers)) as results:
            for received_at, result in results:
                yield Response(**response_values(result.get_response(), model), received_at=received_at)

    def session_note(self, session_id: str) -> str:
        return f"session {session_id} (come back to it with --session)"

    def require_resumable(self, session_id: str) -> None:
        pass

    def load_notes(self, turns: int) -> list[str]:
        return []
