"""What a client may send, and for how long it may take. docs/service.md has the same table."""

from __future__ import annotations

MAX_BODY_BYTES = 8 << 20  # of a body, and of a compressed one when it is expanded
MAX_JSON_DEPTH = 64  # Triton's parser recurses, and overflows its stack at some 100,000
MAX_JSON_MEMBERS = 1024  # of all its objects together; Triton takes minutes for 200,000
MAX_HEADER_BYTES = 64 << 10
MAX_CONNECTIONS = 512
HEADER_SECONDS = 10.0  # from a connection's first moment, or a request's first byte, to the end of its headers
BODY_SECONDS = 60.0
LINGER_SECONDS = 2.0  # for which the rest of a refused body is read
WRITE_SECONDS = 30.0  # for which a client may leave its answer unread
IDLE_SECONDS = 60  # of a connection between two requests
