"""/v1/conversations: a conversation is a session, which responses continue by its id."""

from __future__ import annotations

import secrets
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from openai import BaseModel
from openai.types.conversations import Conversation, Message
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from trtstream.deploy.gateway.errors import ApiError
from trtstream.deploy.gateway.items import listed
from trtstream.deploy.gateway.parameters import read_query, refuse_others, take_metadata
from trtstream.deploy.gateway.response_objects import answer, question
from trtstream.deploy.gateway.schemas import METADATA, body_schema
from trtstream.deploy.gateway.state import Gateway, gateway_of, read_parameters, tenant_of
from trtstream.sessions.records import TurnRecord

if TYPE_CHECKING:
    from trtstream.sessions.response_log import ConversationRecord, ResponseLog

PREFIX = "conv_"
OTHERS = {"metadata": METADATA}
ITEMS_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {"items": ([],)}
NEW = body_schema({}, OTHERS, ITEMS_WITHOUT_EFFECT)
CHANGED = body_schema({}, OTHERS, {})
MAX_LISTED = 1000
FIXED_ITEMS = (
    "a conversation's items come from its responses, and none can be added or taken out; to go back, continue an "
    "earlier response with previous_response_id"
)


async def create(request: Request) -> Response:
    """POST /v1/conversations."""
    from trtstream.sessions.response_log import ConversationRecord

    gateway, tenant = gateway_of(request), tenant_of(request)
    body = await read_parameters(request)
    refuse_others(body, OTHERS, ITEMS_WITHOUT_EFFECT)
    conversation_id = PREFIX + secrets.token_hex(16)
    key = f"{tenant}/{conversation_id}" if tenant else conversation_id
    record = ConversationRecord(conversation_id, key, time.time(), take_metadata(body))
    await gateway.store.call(lambda log: log.add_conversation(tenant, record))
    return _json(record)


async def every(request: Request) -> Response:
    """GET /v1/conversations, which OpenAI does not have: the tenant's conversations, the latest first."""
    read_query(request, {})
    gateway, tenant = gateway_of(request), tenant_of(request)
    records = await gateway.store.call(lambda log: log.conversations(tenant, MAX_LISTED))
    data = [_object(record).model_dump(exclude_unset=True) for record in records]
    return JSONResponse({"object": "list", "data": data, "has_more": len(records) == MAX_LISTED})


async def retrieve(request: Request) -> Response:
    """GET /v1/conversations/ID."""
    return _json(await find_conversation(gateway_of(request), tenant_of(request), request.path_params["id"]))


async def describe(request: Request) -> Response:
    """POST /v1/conversations/ID: other metadata."""
    gateway, tenant, conversation_id = gateway_of(request), tenant_of(request), request.path_params["id"]
    body = await read_parameters(request)
    refuse_others(body, OTHERS, {})
    metadata = take_metadata(body)
    await gateway.store.call(lambda log: log.describe_conversation(tenant, conversation_id, metadata))
    return _json(await find_conversation(gateway, tenant, conversation_id))


async def delete(request: Request) -> Response:
    """DELETE /v1/conversations/ID, and all its turns except those that a fork shares."""
    gateway, tenant, conversation_id = gateway_of(request), tenant_of(request), request.path_params["id"]
    if not await gateway.store.call(lambda log: log.delete_conversation(tenant, conversation_id)):
        raise _unknown(conversation_id)
    return JSONResponse({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


async def items(request: Request) -> Response:
    """GET /v1/conversations/ID/items."""
    return listed(request, await _items(request))


async def item(request: Request) -> Response:
    """GET /v1/conversations/ID/items/ITEM."""
    name = request.path_params["item"]
    found = next((message for message in await _items(request) if message.id == name), None)
    if found is None:
        raise ApiError(HTTPStatus.NOT_FOUND, f"there is no item {name[:64]!r} here", param="item_id")
    return JSONResponse(found.model_dump(exclude_unset=True))


async def find_conversation(gateway: Gateway, tenant: str, conversation_id: str) -> ConversationRecord:
    """Raises ApiError if the tenant has no such conversation."""
    record = await gateway.store.call(lambda log: log.conversation(tenant, conversation_id))
    if record is None:
        raise _unknown(conversation_id)
    return record


async def _items(request: Request) -> list[Message]:
    gateway = gateway_of(request)
    record = await find_conversation(gateway, tenant_of(request), request.path_params["id"])

    def turns(log: ResponseLog) -> list[TurnRecord]:
        head = log.head(record.key)
        return [] if head is None else [turn for turn in log.branch(head.id) if not turn.forgotten]

    return [_message(part) for turn in await gateway.store.call(turns) for part in (question(turn), answer(turn))]


def _message(item: BaseModel) -> Message:
    return Message.model_validate(item.model_dump(exclude_unset=True))


def _object(record: ConversationRecord) -> Conversation:
    values = {"id": record.id, "object": "conversation", "created_at": int(record.created), "metadata": record.metadata}
    return Conversation.model_validate(values)


def _json(record: ConversationRecord) -> JSONResponse:
    return JSONResponse(_object(record).model_dump(exclude_unset=True))


def _unknown(conversation_id: str) -> ApiError:
    message = f"there is no conversation {conversation_id[:64]!r}; it was deleted, or its last turn expired"
    return ApiError(HTTPStatus.NOT_FOUND, message, param="conversation", code="conversation_not_found")
