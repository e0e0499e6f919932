"""The text of a chat turn: the checkpoint's chat template, rendered a turn at a time.

A template renders whole conversations, but a session already holds its earlier turns. So a later turn is rendered after
a placeholder history, and only the text that the template adds after the placeholder answer is fed. Text that the
template writes once per conversation (BOS, a default system prompt) therefore comes once per session.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from trtstream.errors import TrtstreamError, one_line
from trtstream.rendering import ANSWER, QUESTION, LimitReached, behind_answers, render
from trtstream.runtime.messages import Message

if TYPE_CHECKING:
    from trtstream.runtime.tokenizer import Tokenizer

SYSTEM = "placeholder system"


def first_turn(tokenizer: Tokenizer, user: str, system: str | None = None) -> tuple[str, int]:
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


def conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[str, int]:
    """Return (a conversation's text up to the next answer, how many of its characters are the system message)."""
    if messages[0].role != "system":
        return _render(tokenizer, [(message.role, message.content) for message in messages]), 0
    system, user = messages[0].content, messages[1].content
    first_turn(tokenizer, user, system)  # raises for a template that has no system role
    text = _render(tokenizer, [(message.role, message.content) for message in messages])
    return text, _system_length(tokenizer, text, system, user)


def next_turn(tokenizer: Tokenizer, messages: Sequence[Message], last_token: int, has_system: bool = False) -> str:
    """Return the text between the last answer, whose last sampled token is ``last_token``, and the next answer.

    It begins with the end of the last answer (its end-of-turn token), unless ``last_token`` is that end already.
    ``messages`` are what was said since; ``has_system``: the conversation begins with a system message.
    """
    suffix = _suffix(tokenizer, _history(has_system), [(message.role, message.content) for message in messages])
    special = tokenizer.added_tokens_decoder.get(last_token)
    if special is None:  # a piece of text, whatever it looks like
        return suffix
    without_space = suffix.lstrip()
    return without_space[len(special.content) :] if without_space.startswith(special.content) else suffix


@lru_cache(maxsize=16)
def shows_history(tokenizer: Tokenizer, has_system: bool) -> bool:
    """Whether the template leaves a conversation as it was fed when more is said, so that only the rest has to be fed.

    Some hide earlier answers, or move the system message into the last question.
    """
    history, asked = _history(has_system), [("user", QUESTION)]
    try:
        first = _render(tokenizer, history[:-1])
        later = _render(tokenizer, history + asked)
        suffixes = (_suffix(tokenizer, longer, asked) for longer in (history, history + history[-2:]))
        return later.startswith(first) and len({*suffixes}) == 1
    except TrtstreamError:
        return False


def _history(has_system: bool) -> list[tuple[str, str]]:
    return [("system", SYSTEM)] * has_system + [("user", QUESTION), ("assistant", ANSWER)]


def _suffix(tokenizer: Tokenizer, history: list[tuple[str, str]], rest: list[tuple[str, str]]) -> str:
    """What the template adds for ``rest`` behind the last answer of ``history``."""
    with _refusals():
        suffix = behind_answers(tokenizer, history, rest)
    if suffix is None:
        raise TrtstreamError("the engine's chat template does not show earlier answers: use chat in first turns only")
    return suffix


def _system_length(tokenizer: Tokenizer, text: str, system: str, user: str) -> int:
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


def _render(tokenizer: Tokenizer, messages: list[tuple[str, str]], answer: bool = True) -> str:
    with _refusals():
        return render(tokenizer, messages, answer)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except LimitReached as error:
        raise TrtstreamError(f"the engine's chat template is stopped: {error}; fix it and rebuild") from None
    except Exception as error:  # a template may raise anything: what it asks for, or TypeErrors of its own
        raise TrtstreamError(f"the engine's chat template refuses this turn: {one_line(error)}") from error
