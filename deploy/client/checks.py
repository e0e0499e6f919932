"""The checks of ``trtstream smoke``. Each asks the real server, and `judges` decide on its answers."""

from __future__ import annotations

import random
import time
from contextlib import closing
from typing import Any

from trtstream.deploy.client.judges import (
    CheckFailed,
    choose_stop_word,
    require,
    require_same_answer,
    require_session,
    require_stopped,
    require_stream,
    require_tensors,
)
from trtstream.deploy.client.triton import Check, Response, ServedModel, TritonClient, new_session
from trtstream.errors import TrtstreamError
from trtstream.runtime.request_fields import INPUTS, OUTPUTS, datatypes

PROMPT = "The sun rises in the east and"
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
ENDLESS = 100_000


def require_refusal(client: TritonClient, what: str, names: str, **inputs: Any) -> None:
    """The request ends in an error whose message names the input ``names``."""
    try:
        answer = client.answer(**inputs)
    except TrtstreamError as error:
        require(names in str(error), f"an error that names {names} for {what}", str(error))
    else:
        raise CheckFailed(f"expected an error for {what}; found the answer {answer.text!r}")


def describe_tensors(model: ServedModel, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    """Require the tensors, and count them."""
    require_tensors(model, inputs, outputs)
    window, sinks = model.parameter("max_attention_window"), model.parameter("sink_token_length")
    return f"{len(inputs)} inputs, {len(outputs)} outputs, decoupled, W = {window}, S = {sinks}"


def check_health(client: TritonClient, model: ServedModel) -> str:
    health = client.health()
    require(all(health.values()), "the server live and ready and the model ready", health)
    return "live, ready, model ready"


def check_metadata(client: TritonClient, model: ServedModel) -> str:
    return describe_tensors(model, datatypes(INPUTS), datatypes(OUTPUTS))


def check_streaming(client: TritonClient, model: ServedModel) -> str:
    answer = client.answer(text_input=PROMPT, max_tokens=16, **GREEDY)
    started = time.perf_counter()
    responses = list(client.generate(text_input=PROMPT, max_tokens=16, stream=True, **GREEDY))
    require_stream(responses, answer)
    first = responses[0].received_at - started
    gap = (responses[-1].received_at - responses[0].received_at) / (len(responses) - 1)
    return f"{len(responses)} responses, the first after {first * 1e3:.0f} ms, then one every {gap * 1e3:.1f} ms"


def check_session(client: TritonClient, model: ServedModel) -> str:
    window, vocab_size = model.parameter("max_attention_window"), model.parameter("vocab_size")
    rng = random.Random(0)
    turns: list[Response] = []
    with new_session(client, "smoke") as session_id:
        for _ in range(4):
            turns.append(
                client.answer(
                    input_ids=[rng.randrange(vocab_size) for _ in range(window // 3 + 1)],
                    session_id=session_id,
                    session_tokens=turns[-1].session_tokens if turns else None,
                    max_tokens=4,
                    **GREEDY,
                )
            )
    require_session(turns, window)
    return f"{turns[-1].session_tokens} tokens in {len(turns)} turns, W = {window}"


def check_determinism(client: TritonClient, model: ServedModel) -> str:
    first, second = (client.answer(text_input=PROMPT, max_tokens=24, **GREEDY) for _ in range(2))
    require_same_answer(first, second)
    return f"{len(first.token_ids)} greedy tokens, twice the same"


def check_stop_words(client: TritonClient, model: ServedModel) -> str:
    greedy = client.answer(text_input=PROMPT, max_tokens=24, **GREEDY)
    stop_word = choose_stop_word(greedy.text)
    answer = client.answer(text_input=PROMPT, max_tokens=24, stop_words=[stop_word], **GREEDY)
    require_stopped(answer, greedy.text, stop_word)
    return f"ended before {stop_word!r}"


def check_cancellation(client: TritonClient, model: ServedModel) -> str:
    with closing(client.generate(text_input=PROMPT, max_tokens=ENDLESS, stream=True, **GREEDY)) as responses:
        for _ in range(2):
            require(next(responses).finish_reason == "", "a stream that continues", "its end")
    started = time.perf_counter()
    client.answer(text_input=PROMPT, max_tokens=1, **GREEDY)
    return f"left after 2 responses; the next request took {(time.perf_counter() - started) * 1e3:.0f} ms"


def check_bad_requests(client: TritonClient, model: ServedModel) -> str:
    vocab_size = model.parameter("vocab_size")
    require_refusal(client, "text_input and input_ids together", "input_ids", text_input=PROMPT, input_ids=[1])
    require_refusal(client, f"the token id {vocab_size}", str(vocab_size), input_ids=[vocab_size])
    require_refusal(client, "max_tokens -1", "max_tokens", text_input=PROMPT, max_tokens=-1)
    return "3 refused, each with its own error"


def check_session_tokens(client: TritonClient, model: ServedModel) -> str:
    with new_session(client, "smoke") as session_id:
        turn = client.answer(text_input=PROMPT, session_id=session_id, max_tokens=2, **GREEDY)
        wrong, right = turn.session_tokens + 1, turn.session_tokens
        request = {"text_input": PROMPT, "session_id": session_id, "max_tokens": 2, **GREEDY}
        require_refusal(
            client, f"session_tokens {wrong}, not {right}", "session_tokens", session_tokens=wrong, **request
        )
        client.answer(session_tokens=right, **request)
    return f"{wrong} refused, {right} accepted"


def check_turn_ids(client: TritonClient, model: ServedModel) -> str:
    request = {"text_input": PROMPT, "max_tokens": 8, **GREEDY}
    with new_session(client, "smoke") as session_id, new_session(client, "smoke") as fork_id:
        first = client.answer(session_id=session_id, **request)
        require_refusal(
            client, "another parent_turn", "parent_turn", session_id=session_id, parent_turn="0" * 32, **request
        )
        fork = client.answer(session_id=fork_id, parent_turn=first.turn_id, **request)
        second = client.answer(session_id=session_id, parent_turn=first.turn_id, **request)
        require(fork.turn_id != second.turn_id, "an id of its own for each turn", fork.turn_id)
        require_same_answer(fork, second)
    return f"turn {first.turn_id} continued in its session and in a fork, with the same answer"


def check_session_end(client: TritonClient, model: ServedModel) -> str:
    with new_session(client, "smoke") as session_id:
        request = {"text_input": PROMPT, "session_id": session_id, "max_tokens": 2, **GREEDY}
        seen = client.answer(**request).session_tokens
        client.answer(session_id=session_id, session_end=True)
        require_refusal(client, "a turn of an ended session", "session", session_tokens=seen, **request)
    return "an ended session is gone"


CHECKS: dict[str, Check | str] = {
    "health": check_health,
    "metadata": check_metadata,
    "streaming": check_streaming,
    "session beyond W": check_session,
    "greedy determinism": check_determinism,
    "stop words": check_stop_words,
    "cancelled stream": check_cancellation,
    "bad requests": check_bad_requests,
    "session_tokens": check_session_tokens,
    "turn ids": check_turn_ids,
    "session_end": check_session_end,
    "health afterwards": check_health,
}
