"""The text of a chat turn: the checkpoint's chat template, rendered a turn at a time.

A template renders whole conversations, but a session already holds its earlier turns. So a later turn is rendered after
a placeholder history, and only the text that the template adds after the placeholder answer is fed. Text that the
template writes once per conversation (BOS, a default system prompt) therefore comes once per session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from trtstream.errors import TrtstreamError, one_line
from trtstream.rendering import LimitReached, limited
from trtstream.runtime.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = "placeholder question"
ANSWER = "placeholder answer"


def first_turn(tokenizer: PreTrainedTokenizerBase, user: str, system: str | None = None) -> tuple[str, int]:
    """Return (a new conversation's text up to the answer, how many of its characters are the system message)."""
    if system is None:
        return _render(tokenizer, [("user", user)]), 0
    try:
        text = _render(tokenizer, [("system", system), ("user", user)])
    except TrtstreamError as error:
        if type(error.__cause__) is not TemplateError:  # what a template raises by raise_exception
            raise
        _render(tokenizer, [("user", user)])  # which it may refuse as well
        text = ""
    if system.strip() not in text:
        raise TrtstreamError("the engine's chat template has no system role; put the instructions into the first text")
    return text, _system_length(tokenizer, text, system, user)


def conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, int]:
    """Return (a conversation's text up to the next answer, how many of its characters are the system message)."""
    if messages[0].role != "system":
        return _render(tokenizer, [(message.role, message.content) for message in messages]), 0
    system, user = messages[0].content, messages[1].content
    first_turn(tokenizer, user, system)  # raises for a template that has no system role
    text = _render(tokenizer, [(message.role, message.content) for message in messages])
    return text, _system_length(tokenizer, text, system, user)


def next_turn(tokenizer: PreTrainedTokenizerBase, user: str, last_token: int) -> str:
    """Return the text between the last answer, whose last sampled token is ``last_token``, and the next answer.

    It begins with the end of the last answer (its end-of-turn token), unless ``last_token`` is that end already.
    """
    text = _render(tokenizer, [("user", QUESTION), ("assistant", ANSWER), ("user", user)])
    _, separator, suffix = text.partition(ANSWER)
    if not separator:
        raise TrtstreamError("the engine's chat template does not show earlier answers: use chat in first turns only")
    special = tokenizer.added_tokens_decoder.get(last_token)
    if special is None:  # a piece of text, whatever it looks like
        return suffix
    without_space = suffix.lstrip()
    return without_space[len(special.content) :] if without_space.startswith(special.content) else suffix


def _system_length(tokenizer: PreTrainedTokenizerBase, text: str, system: str, user: str) -> int:
    try:
        alone = _render(tokenizer, [("system", system)], answer=False)
    except TrtstreamError:  # a template may insist on a user message
        alone = ""
    if alone and text.startswith(alone):
        return len(alone)
    # The system text is inside the user's message: it ends at the first difference when that begins differently.
    other = _render(tokenizer, [("system", system), ("user", "B" if user.strip().startswith("A") else "A")])
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (one, another) in pairs if one != another), len(text))


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[tuple[str, str]], answer: bool = True) -> str:
    conversation = [{"role": role, "content": content} for role, content in messages]
    try:
        with limited(tokenizer.chat_template):
            text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=answer)
        return cast(str, text)  # ids only with tokenize=True
    except LimitReached as error:
        raise TrtstreamError(f"the engine's chat template is stopped: {error}; fix it and rebuild") from None
    except Exception as error:  # a template may raise anything: what it asks for, or TypeErrors of its own
        raise TrtstreamError(f"the engine's chat template refuses this turn: {one_line(error)}") from error
