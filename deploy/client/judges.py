"""Requirements on the answers of a service, for `checks`. Nothing here knows a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtstream.deploy.client.triton import Response, ServedModel
from trtstream.runtime.requests import join


class CheckFailed(Exception):
    """The server answered, but not as promised; the message says what was expected and what was found."""


def require(holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise CheckFailed(f"expected {expected}; found {found}")


def require_tensors(model: ServedModel, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """The model has the tensors ``inputs`` and ``outputs``, by name, with these datatypes, and is decoupled."""
    for kind, wanted, found in (("input", inputs, model.inputs), ("output", outputs, model.outputs)):
        for name, datatype in wanted.items():
            require(found.get(name) == datatype, f"{kind} {name} {datatype}", found.get(name, "no such tensor"))
    require(model.decoupled, "a decoupled model", "one that answers each request once")


def require_stream(responses: Sequence[Response], answer: Response) -> None:
    """Streamed responses are at least two, in order, and join up to ``answer``, which came in one piece."""
    require(len(responses) >= 2, "at least 2 streamed responses", len(responses))
    tokens = 0
    for response in responses:
        tokens += len(response.token_ids)
        require(response.num_output_tokens == tokens, f"num_output_tokens {tokens}", response.num_output_tokens)
    reasons = [response.finish_reason for response in responses]
    require(not any(reasons[:-1]), "an empty finish_reason until the last response", reasons)
    require_same_answer(answer, join(responses))


def require_same_answer(first: Response, second: Response) -> None:
    """The same request, asked twice, gave the same tokens, text and finish reason."""
    require(second.token_ids == first.token_ids, f"the token ids {list(first.token_ids)}", list(second.token_ids))
    require(second.text == first.text, f"the text {first.text!r}", repr(second.text))
    require(second.finish_reason == first.finish_reason, repr(first.finish_reason), repr(second.finish_reason))


def require_session(turns: Sequence[Response], window: int) -> None:
    """Turns of one session: each answers, ``session_tokens`` counts them all, and the last starts beyond W tokens."""
    seen = turns[0].session_tokens
    for number, turn in enumerate(turns[1:], start=2):
        # A turn feeds the last token of the one before and leaves its own: in sum, all its input and output.
        seen += turn.num_input_tokens + turn.num_output_tokens
        require(turn.session_tokens == seen, f"session_tokens {seen} after turn {number}", turn.session_tokens)
    for number, turn in enumerate(turns, start=1):
        require(len(turn.token_ids) > 0, f"an answer in turn {number}", "no token")
    require(
        turns[-2].session_tokens > window, f"more than {window} tokens before the last turn", turns[-2].session_tokens
    )


def require_stopped(answer: Response, greedy_text: str, stop_word: str) -> None:
    """With a stop word the greedy text ends right before the word's first occurrence."""
    expected = greedy_text[: greedy_text.index(stop_word)]
    require(answer.text == expected, f"the text {expected!r} before the stop word {stop_word!r}", repr(answer.text))
    require(answer.finish_reason == "stop", "finish_reason 'stop'", repr(answer.finish_reason))


def choose_stop_word(text: str) -> str:
    """Three complete characters from the middle of ``text`` (U+FFFD is part of one that was cut)."""
    middle = len(text) // 2
    for start in [*range(middle, len(text) - 2), *range(middle)]:
        if "\N{REPLACEMENT CHARACTER}" not in (word := text[start : start + 3]):
            return word
    raise CheckFailed(f"expected a greedy text to take a stop word from; found {text!r}")
