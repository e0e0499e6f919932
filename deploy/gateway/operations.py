"""What OpenAI's routes take and answer here, for GET /openapi.json."""

from __future__ import annotations

from functools import cache
from typing import Any

from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from openai.types.conversations import Conversation, ConversationDeletedResource, Message
from openai.types.responses import Response, ResponseInputMessageItem, ResponseOutputMessage

from trtstream.deploy.gateway import chat_completions, completions, conversations, items, response_requests, responses
from trtstream.deploy.gateway.description import Operation, describe

OPERATIONS = {
    "GET /v1/models": Operation("The models", (Model,), is_list=True),
    "GET /v1/models/{name}": Operation("A model, and its window", (Model,)),
    "POST /v1/responses": Operation(
        "Continue a conversation, or begin one", (Response,), body=response_requests.BODY, streams=True
    ),
    "GET /v1/responses/{id}": Operation(
        "A response, or the events that made it", (Response,), query=responses.QUERY, streams=True
    ),
    "DELETE /v1/responses/{id}": Operation("Delete a response; those that continue it stay"),
    "POST /v1/responses/{id}/cancel": Operation("End a background response", (Response,)),
    "GET /v1/responses/{id}/input_items": Operation(
        "The conversation up to a response",
        (ResponseInputMessageItem, ResponseOutputMessage),
        query=items.QUERY,
        is_list=True,
    ),
    "GET /v1/conversations": Operation("The latest conversations", (Conversation,), is_list=True),
    "POST /v1/conversations": Operation("A new conversation", (Conversation,), body=conversations.NEW),
    "GET /v1/conversations/{id}": Operation("A conversation", (Conversation,)),
    "POST /v1/conversations/{id}": Operation("Other metadata", (Conversation,), body=conversations.CHANGED),
    "DELETE /v1/conversations/{id}": Operation(
        "Delete a conversation and its turns, except those that a fork shares", (ConversationDeletedResource,)
    ),
    "GET /v1/conversations/{id}/items": Operation(
        "What was said in a conversation", (Message,), query=items.QUERY, is_list=True
    ),
    "GET /v1/conversations/{id}/items/{item}": Operation("One message", (Message,)),
    "POST /v1/chat/completions": Operation(
        "Answer a whole chat", (ChatCompletion,), body=chat_completions.BODY, streams=True
    ),
    "POST /v1/completions": Operation("Go on with a text", (Completion,), body=completions.BODY, streams=True),
}
"""By method and path. The one that always refuses is not among them."""


@cache
def description(models: tuple[str, ...]) -> dict[str, Any]:
    """The OpenAPI description of a gateway to ``models``."""
    return describe(OPERATIONS, models)
