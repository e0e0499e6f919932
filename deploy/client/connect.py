"""Which client speaks to a service: ours, or that of Triton's tensorrtllm backend."""

from __future__ import annotations

from pathlib import Path

from trtstream.deploy.client.client import DEFAULT_MODEL, Client, ModelMissingError
from trtstream.deploy.tensorrt_llm.client import ENSEMBLE, TensorrtLlmClient


def connect(url: str, model_name: str = DEFAULT_MODEL, tls_ca: Path | None = None) -> Client:
    """A client for the model ``model_name`` at ``url``, or for ``ensemble`` where only that is served.

    Asks the server what the model's inputs are: one without ``session_id`` is the tensorrtllm backend's. Raises
    TrtstreamError if the server does not answer or has no such model.
    """
    with Client(url, model_name, tls_ca) as client:
        try:
            ours = "session_id" in client.model().inputs
        except ModelMissingError:
            client.model_name = ENSEMBLE
            if model_name != DEFAULT_MODEL or not _is_served(client):
                raise
            model_name, ours = ENSEMBLE, False
    return (Client if ours else TensorrtLlmClient)(url, model_name, tls_ca)


def _is_served(client: Client) -> bool:
    try:
        client.model()
    except ModelMissingError:
        return False
    return True
