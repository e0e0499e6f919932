"""What a chat turn feeds: the checkpoint's chat template, rendered a turn at a time.

A template renders whole conversations, but a session remembers its own. So a later turn is rendered behind a
placeholder history, and what the template adds after the placeholder answer is what is fed: what the template writes
once per conversation (BOS, a default system prompt) comes once per session.
"""

from __future__ import annotations

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from trtstream.errors import TrtstreamError

QUESTION = "placeholder question"
ANSWER = "placeholder answer"


def first_turn(tokenizer: PreTrainedTokenizerBase, user: str, system: str | None = None) -> tuple[str, int]:
    """Return (a new conversation's text up to the answer, how many of its characters are the system message)."""
    if system is None:
        return _render(tokenizer, [("user", user)]), 0
    try:
        text = _render(tokenizer, [("system", system), ("user", user)])
    except TrtstreamError:
        text = ""
    if system.strip() not in text:
        raise TrtstreamError("the engine's chat template has no system role; put the instructions into the first text")
    return text, _system_length(tokenizer, text, system, user)


def next_turn(tokenizer: PreTrainedTokenizerBase, user: str, last_token: int) -> str:
    """Return what follows the last answer, whose last sampled token is ``last_token``, up to the next answer.

    That begins with the end of the answer (its end-of-turn token and what the template puts behind it), unless
    ``last_token`` is that end already.
    """
    text = _render(tokenizer, [("user", QUESTION), ("assistant", ANSWER), ("user", user)])
    _, found, suffix = text.partition(ANSWER)
    if not found:
        raise TrtstreamError("the engine's chat template does not show earlier answers: use chat in first turns only")
    if last_token not in tokenizer.added_tokens_decoder:  # a piece of text, whatever it looks like
        return suffix
    last, without_space = tokenizer.convert_ids_to_tokens(last_token), suffix.lstrip()
    return without_space[len(last) :] if without_space.startswith(last) else suffix


def _system_length(tokenizer: PreTrainedTokenizerBase, text: str, system: str, user: str) -> int:
    try:
        alone = _render(tokenizer, [("system", system)], answer=False)
    except TrtstreamError:  # a template may insist on a user message
        alone = ""
    if alone and text.startswith(alone):
        return len(alone)
    # The system text is somewhere inside the user's message: what stays the same when that begins differently.
    other = _render(tokenizer, [("system", system), ("user", "B" if user.strip().startswith("A") else "A")])
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (mine, others) in pairs if mine != others), len(text))


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[tuple[str, str]], answer: bool = True) -> str:
    conversation = [{"role": role, "content": content} for role, content in messages]
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=answer)
    except TemplateError as error:
        raise TrtstreamError(f"the engine's chat template refuses this turn: {error}") from error
