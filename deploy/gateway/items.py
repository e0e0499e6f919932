"""Lists of items, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse

from trtstream.deploy.gateway.errors import bad_request
from trtstream.deploy.gateway.parameters import Schema, read_query
from trtstream.deploy.gateway.schemas import TEXT

LIMIT = 20
MAX_LIMIT = 100
QUERY: dict[str, Schema] = {
    "order": {"type": "string", "enum": ["asc", "desc"]},
    "after": TEXT,
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
}


def listed(request: Request, items: Sequence[BaseModel], **more: Any) -> JSONResponse:
    """The part of ``items``, the oldest first, that the query's ``order``, ``after`` and ``limit`` ask for.

    ``more`` is beside it.
    """
    query = read_query(request, QUERY)
    limit = query.get("limit", LIMIT)
    values: list[dict[str, Any]] = [item.model_dump(exclude_unset=True) for item in items]
    if query.get("order", "desc") == "desc":
        values.reverse()
    if "after" in query:
        ids = [value["id"] for value in values]
        if query["after"] not in ids:
            raise bad_request("after is the id of no item in this list", "after")
        values = values[ids.index(query["after"]) + 1 :]
    page = values[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    has_more = len(values) > limit
    return JSONResponse(
        {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": has_more, **more}
    )
