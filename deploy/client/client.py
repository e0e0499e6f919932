"""The client of a model that ``trtstream package`` wrote. The server keeps its sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from trtstream.deploy.client.checks import CHECKS
from trtstream.deploy.client.triton import DEFAULT_URL, Check, Response, TritonClient, make_tensor
from trtstream.deploy.contract import to_array
from trtstream.errors import TrtstreamError
from trtstream.runtime.request_fields import INPUTS, OUTPUTS, Field

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

    def generate(self, **inputs: Any) -> Generator[Response, None, None]:
        tensors = [
            make_tensor(name, INPUTS[name].datatype, to_array(value, INPUTS[name].datatype))
            for name, value in inputs.items()
            if value is not None
        ]
        with contextlib.closing(self._stream(self.model_name, tensors)) as results:
            for received_at, result in results:
                values = {field.attribute: self._value(field, result) for field in OUTPUTS.values()}
                yield Response(**values, received_at=received_at)

    def session_note(self, session_id: str) -> str:
        return f"session {session_id} (come back to it with --session)"

    def require_resumable(self, session_id: str) -> None:
        pass

    def load_notes(self, turns: int) -> list[str]:
        return []

    def _value(self, field: Field, result: Any) -> Any:
        """An output tensor as a Python value, or as a tuple of them for a vector."""
        array = result.as_numpy(field.name)
        if array is None:
            raise TrtstreamError(
                f"the model {self.model_name!r} at {self.url} answers without {field.name!r}: "
                "it was not packaged by trtstream; see --model-name"
            )
        values = array.tolist()
        if field.datatype == "BYTES":
            values = [value.decode("utf-8", "replace") for value in values]
        return tuple(values) if field.vector else values[0]
