"""Environment variables through which ``trtstream serve`` configures the models it starts."""

from __future__ import annotations

DRAIN_SOCKET = "TRTSTREAM_DRAIN_SOCKET"
"""Path of the Unix socket over which serve stops the model (see `trtstream.deploy.serving.drain`)."""

PUBLIC = "TRTSTREAM_PUBLIC"
"""``1`` where users of other machines can reach the service."""
