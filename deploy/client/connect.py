"""How the client commands find their service: the options that name it, and the client that speaks to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from trtstream.deploy.client.client import DEFAULT_MODEL, Client
from trtstream.deploy.client.tensorrt_llm.client import TensorrtLlmClient
from trtstream.deploy.client.tensorrt_llm.tensors import ENSEMBLE
from trtstream.deploy.client.triton import DEFAULT_URL, TritonClient
from trtstream.errors import TrtstreamError


def connect(url: str, model_name: str = DEFAULT_MODEL, tls_ca: Path | None = None) -> TritonClient:
    """A client for the model ``model_name`` at ``url``, or for ``ensemble`` where only that is served.

    Asks the server for the model's inputs: one without ``session_id`` is the tensorrtllm backend's. Raises
    TrtstreamError if the server does not answer or has no such model.
    """
    with Client(url, model_name, tls_ca) as client:
        try:
            ours = "session_id" in client.model().inputs
        except TrtstreamError as error:
            client.model_name = ENSEMBLE
            if error.code != "not_found" or model_name != DEFAULT_MODEL or not client.health()["model"]:
                raise
            model_name, ours = ENSEMBLE, False
    return (Client if ours else TensorrtLlmClient)(url, model_name, tls_ca)


def service_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every client command: ``url``, ``model_name`` and ``tls_ca``, as `connect` takes them."""
    for option in (
        click.option(
            "--tls-ca",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Connect over TLS, trusting the certificates in this PEM file.",
        ),
        click.option("--model-name", default=DEFAULT_MODEL, show_default=True, help="The model's name on the server."),
        click.option("--url", default=DEFAULT_URL, show_default=True, help="host:port of Triton's gRPC service."),
    ):
        command = option(command)
    return command
