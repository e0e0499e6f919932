"""Conversations as a chat template writes them, within limits: one that loops is ended in the thread that renders it.

Templates come with checkpoints. jinja's sandbox bounds one ``range``, and neither nested ones nor texts that double.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from jinja2 import Environment
from jinja2.utils import Namespace

from trtstream.template_language import compile_template

SECONDS = 2.0
"""Of the thread's CPU, which a busy machine does not shorten. Rendering a conversation takes a millisecond."""

CHARACTERS = 1 << 25
"""Of the text and of a variable; the longest texts that requests hold have a quarter of it."""

TEMPLATE = "<template>"
"""jinja's file name of a compiled template."""


QUESTION = "placeholder question"
ANSWER = "placeholder answer"


class Templated(Protocol):
    """A tokenizer, ours or one of transformers."""

    @property
    def chat_template(self) -> Any: ...

    @property
    def special_tokens_map(self) -> Mapping[str, str]: ...


class LimitReached(Exception):
    """The template computed for too long, or wrote too much. Its message says which."""


def render(tokenizer: Templated, messages: list[tuple[str, str]], answer: bool = True) -> str:
    """The text of a conversation of (role, content); with ``answer`` it ends where the next answer begins.

    Raises LimitReached, or whatever the template raises.
    """
    conversation = [{"role": role, "content": content} for role, content in messages]
    with limited(tokenizer.chat_template):
        return compile_template(tokenizer.chat_template).render(
            tokenizer.special_tokens_map,
            messages=conversation,
            tools=None,
            documents=None,
            add_generation_prompt=answer,
        )


def behind_answers(tokenizer: Templated, history: list[tuple[str, str]], rest: list[tuple[str, str]]) -> str | None:
    """What the template adds for ``rest`` behind the last answer of ``history``, whose answers are `ANSWER`.

    None if the template does not show them all. Raises as `render` does.
    """
    answers = sum(role == "assistant" for role, _ in history)
    parts = render(tokenizer, history + rest).split(ANSWER, answers)
    return parts[-1] if len(parts) > answers else None


@contextmanager
def limited(template: object) -> Iterator[None]:
    """Raise LimitReached in a block that renders ``template``, once it has taken `SECONDS` or written `CHARACTERS`.

    This thread's trace function looks at each line of the template and at each call. A single operation in C is not
    interrupted, however long it takes; powers are refused before the block.
    """
    _refuse_powers(template)
    deadline = time.thread_time() + SECONDS
    written = 0
    counted: dict[int, int] = {}

    def check_time() -> None:
        if time.thread_time() > deadline:
            raise LimitReached(f"it computes for more than {SECONDS:g} seconds")

    def each_line(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal written
        check_time()
        if event == "return" and isinstance(value, str):  # a yield is one too
            written += len(value)
        for pieces in frame.f_locals.values():  # a macro or a block collects its text in a list
            if isinstance(pieces, list):
                written += sum(len(piece) for piece in pieces[counted.get(id(pieces), 0) :] if isinstance(piece, str))
                counted[id(pieces)] = len(pieces)
        if max(written, *map(_length, frame.f_locals.values()), 0) > CHARACTERS:
            raise LimitReached(f"it writes more than {CHARACTERS:,} characters")
        return each_line

    def each_call(frame: FrameType, event: str, value: Any) -> Any:
        check_time()
        return each_line if frame.f_code.co_filename == TEMPLATE else None

    before = sys.gettrace()
    sys.settrace(each_call)
    try:
        yield
    finally:
        sys.settrace(before)


def _refuse_powers(template: object) -> None:
    """Raise LimitReached for ``**``: Python computes 10**10**10 in one operation."""
    texts = template.values() if isinstance(template, dict) else [template]
    for text in (text for text in texts if isinstance(text, str) and "**" in text):
        if any(token[1:] == ("operator", "**") for token in Environment().lex(text)):
            raise LimitReached("it computes powers")


def _length(value: object) -> int:
    """The length of a text or a list, or the longest among the attributes of a ``namespace``; 0 for other things."""
    if isinstance(value, Namespace):
        return max(map(_length, getattr(value, "_Namespace__attrs").values()), default=0)  # noqa: B009
    return len(value) if isinstance(value, str | list | tuple) else 0
