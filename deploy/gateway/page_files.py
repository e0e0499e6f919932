"""The chat page: the files of ``page/``, which a browser lets do nothing but talk to this gateway."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    # Nothing in the page makes HTML of text, and nothing can.
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes() -> Iterator[Route]:
    """A route for each file; the page itself is at /."""
    for path in sorted(FOLDER.iterdir()):
        url = "/" if path.name == INDEX else f"/page/{path.name}"
        yield Route(url, _sending(path), methods=["GET"])


def _sending(path: Path) -> Callable[[Request], Awaitable[Response]]:
    """Sends the file as it is now."""
    content, media_type = path.read_bytes(), TYPES[path.suffix]
    headers = {**HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return send
