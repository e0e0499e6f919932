"""The gateway's connection to the gRPC service of its own Triton."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from trtstream.deploy.client.triton import NO_PROXY
from trtstream.deploy.gateway.triton import TritonAddress
from trtstream.errors import TrtstreamError

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"
# A Triton that is started again is found at once; gRPC's own pauses grow to two minutes.
OPTIONS: list[tuple[str, object]] = [
    *NO_PROXY,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def own_triton(host: str, port: int, tls: tuple[Path, Path] | None) -> TritonAddress:
    """Where a Triton is that listens on ``host:port`` of this machine.

    With ``tls`` (certificate, key: PEM files) it trusts that certificate alone, whatever its names are. Raises
    TrtstreamError for a certificate that cannot be used.
    """
    url = f"{LOOPBACK if host == EVERY_ADDRESS else host}:{port}"
    if tls is None:
        return TritonAddress(url, OPTIONS)
    name = ("grpc.ssl_target_name_override", _certified_name(*tls))
    return TritonAddress(url, [*OPTIONS, name], tls[0])


def _certified_name(certificate: Path, key: Path) -> str:
    """A host that the certificate is for. Python shows a certificate's names once it has verified it: here, in a
    handshake with itself."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate, key)
        client = ssl.create_default_context(cafile=certificate)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        ends = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
        for end in (*ends, *ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        names: Any = (ends[0].getpeercert() or {}).get("subjectAltName", ())
    except OSError as error:  # ssl's errors too
        raise TrtstreamError(f"--tls-cert {certificate} cannot be used by --openai-port: {error}") from error
    hosts = [str(value) for kind, value in names if kind in ("DNS", "IP Address")]
    if not hosts:
        raise TrtstreamError(f"--tls-cert {certificate} names no host (subjectAltName), which --openai-port needs")
    return hosts[0].replace("*", "any")
