"""What ``trtstream serve`` tells the models it starts, through their environment."""

from __future__ import annotations

DRAIN_SOCKET = "TRTSTREAM_DRAIN_SOCKET"
"""Path of the Unix socket over which serve stops the model (see `trtstream.deploy.serving.drain`)."""

PUBLIC = "TRTSTREAM_PUBLIC"
"""``1`` where others than this machine's users can reach the service."""
