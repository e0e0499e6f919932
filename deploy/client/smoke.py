"""``trtstream smoke``: does a served model do all that it promises? Every check asks the real server.

A ``check_*`` function talks to the server; the ``require_*`` functions judge what came back and know no server.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from trtstream.deploy.client.client import (
    INPUTS,
    OUTPUTS,
    Client,
    Response,
    ServedModel,
    join,
    new_session,
    service_options,
)
from trtstream.deploy.client.connect import connect
from trtstream.deploy.tensorrt_llm import client as tensorrt_llm_client
from trtstream.errors import TrtstreamError
from trtstream.tables import print_table

PROMPT = "The sun rises in the east and"
GREEDY = {"temperature": 0.0, "ignore_eos": True}
ENDLESS = 100_000


class CheckFailed(Exception):
    """The server answered, but not as promised; the message says what was expected and what was found."""


@dataclass(frozen=True)
class CheckResult:
    """One row of the report: ``detail`` is what was measured or, if it failed, what was expected and found.

    ``passed`` is None where the service is of a kind that the check does not apply to; ``detail`` says why.
    """

    name: str
    passed: bool | None
    detail: str


def require(holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise CheckFailed(f"expected {expected}; found {found}")


def require_tensors(model: ServedModel, inputs: dict[str, str] = INPUTS, outputs: dict[str, str] = OUTPUTS) -> None:
    """The model has the tensors ``inputs`` and ``outputs``, with their datatypes, and is decoupled."""
    for kind, wanted, found in (("input", inputs, model.inputs), ("output", outputs, model.outputs)):
        for name, datatype in wanted.items():
            require(found.get(name) == datatype, f"{kind} {name} {datatype}", found.get(name, "no such tensor"))
    require(model.decoupled, "a decoupled model", "one that answers each request once")


def require_stream(responses: Sequence[Response], whole: Response) -> None:
    """Streamed responses are at least two, in order, and join up to the answer ``whole`` that came in one piece."""
    require(len(responses) >= 2, "at least 2 streamed responses", len(responses))
    tokens = 0
    for response in responses:
        tokens += len(response.token_ids)
        require(response.num_output_tokens == tokens, f"num_output_tokens {tokens}", response.num_output_tokens)
    reasons = [response.finish_reason for response in responses]
    require(not any(reasons[:-1]), "an empty finish_reason until the last response", reasons)
    require_same_answer(whole, join(responses))


def require_same_answer(first: Response, second: Response) -> None:
    """The same request, asked twice, gave the same tokens, text and finish reason."""
    require(second.token_ids == first.token_ids, f"the token ids {list(first.token_ids)}", list(second.token_ids))
    require(second.text == first.text, f"the text {first.text!r}", repr(second.text))
    require(second.finish_reason == first.finish_reason, repr(first.finish_reason), repr(second.finish_reason))


def require_session(turns: Sequence[Response], window: int) -> None:
    """Turns of one session: each answers, ``session_tokens`` counts them all, and the last starts beyond W tokens."""
    seen = turns[0].session_tokens
    for number, turn in enumerate(turns[1:], start=2):
        # A turn feeds the last token of the one before, and leaves its own last one: in sum, all that goes in or out.
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
    """Three characters from the middle of ``text``, whole ones (U+FFFD is part of a character that was cut)."""
    middle = len(text) // 2
    for start in [*range(middle, len(text) - 2), *range(middle)]:
        if "\N{REPLACEMENT CHARACTER}" not in (word := text[start : start + 3]):
            return word
    raise CheckFailed(f"expected a greedy text to take a stop word from; found {text!r}")


def require_refusal(client: Client, what: str, names: str, **inputs: object) -> None:
    """The request ends in an error whose message names the input ``names``."""
    try:
        answer = client.answer(**inputs)
    except TrtstreamError as error:
        require(names in str(error), f"an error that names {names} for {what}", str(error))
    else:
        raise CheckFailed(f"expected an error for {what}; found the answer {answer.text!r}")


def check_health(client: Client, model: ServedModel) -> str:
    health = client.health()
    require(all(health.values()), "the server live and ready and the model ready", health)
    return "live, ready, model ready"


def check_metadata(client: Client, model: ServedModel) -> str:
    require_tensors(model)
    window, sinks = model.parameter("max_attention_window"), model.parameter("sink_token_length")
    return f"{len(INPUTS)} inputs, {len(OUTPUTS)} outputs, decoupled, W = {window}, S = {sinks}"


def check_streaming(client: Client, model: ServedModel) -> str:
    whole = client.answer(text_input=PROMPT, max_tokens=16, **GREEDY)
    started = time.perf_counter()
    responses = list(client.generate(text_input=PROMPT, max_tokens=16, stream=True, **GREEDY))
    require_stream(responses, whole)
    first = responses[0].received_at - started
    gap = (responses[-1].received_at - responses[0].received_at) / (len(responses) - 1)
    return f"{len(responses)} responses, the first after {first * 1e3:.0f} ms, then one every {gap * 1e3:.1f} ms"


def check_session(client: Client, model: ServedModel) -> str:
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


def check_determinism(client: Client, model: ServedModel) -> str:
    first, second = (client.answer(text_input=PROMPT, max_tokens=24, **GREEDY) for _ in range(2))
    require_same_answer(first, second)
    return f"{len(first.token_ids)} greedy tokens, twice the same"


def check_stop_words(client: Client, model: ServedModel) -> str:
    greedy = client.answer(text_input=PROMPT, max_tokens=24, **GREEDY)
    stop_word = choose_stop_word(greedy.text)
    answer = client.answer(text_input=PROMPT, max_tokens=24, stop_words=[stop_word], **GREEDY)
    require_stopped(answer, greedy.text, stop_word)
    return f"ended before {stop_word!r}"


def check_cancellation(client: Client, model: ServedModel) -> str:
    with closing(client.generate(text_input=PROMPT, max_tokens=ENDLESS, stream=True, **GREEDY)) as responses:
        for _ in range(2):
            require(next(responses).finish_reason == "", "a stream that goes on", "its end")
    started = time.perf_counter()
    client.answer(text_input=PROMPT, max_tokens=1, **GREEDY)
    return f"left after 2 responses; the next request took {(time.perf_counter() - started) * 1e3:.0f} ms"


def check_bad_requests(client: Client, model: ServedModel) -> str:
    vocab_size = model.parameter("vocab_size")
    require_refusal(client, "text_input and input_ids together", "input_ids", text_input=PROMPT, input_ids=[1])
    require_refusal(client, f"the token id {vocab_size}", str(vocab_size), input_ids=[vocab_size])
    require_refusal(client, "max_tokens -1", "max_tokens", text_input=PROMPT, max_tokens=-1)
    return "3 refused, each with its own error"


def check_session_tokens(client: Client, model: ServedModel) -> str:
    with new_session(client, "smoke") as session_id:
        turn = client.answer(text_input=PROMPT, session_id=session_id, max_tokens=2, **GREEDY)
        wrong, right = turn.session_tokens + 1, turn.session_tokens
        request = {"text_input": PROMPT, "session_id": session_id, "max_tokens": 2, **GREEDY}
        require_refusal(
            client, f"session_tokens {wrong}, not {right}", "session_tokens", session_tokens=wrong, **request
        )
        client.answer(session_tokens=right, **request)
    return f"{wrong} refused, {right} accepted"


def check_session_end(client: Client, model: ServedModel) -> str:
    with new_session(client, "smoke") as session_id:
        request = {"text_input": PROMPT, "session_id": session_id, "max_tokens": 2, **GREEDY}
        seen = client.answer(**request).session_tokens
        client.answer(session_id=session_id, session_end=True)
        require_refusal(client, "a turn of an ended session", "session", session_tokens=seen, **request)
    return "an ended session is gone"


Check = Callable[[Client, ServedModel], str]
CHECKS: dict[str, Check] = {
    "health": check_health,
    "metadata": check_metadata,
    "streaming": check_streaming,
    "session beyond W": check_session,
    "greedy determinism": check_determinism,
    "stop words": check_stop_words,
    "cancelled stream": check_cancellation,
    "bad requests": check_bad_requests,
    "session_tokens": check_session_tokens,
    "session_end": check_session_end,
    "health afterwards": check_health,
}


NO_SESSIONS = "the tensorrtllm backend keeps no sessions"
NOT_OF_TENSORRT_LLM = {
    "session beyond W": NO_SESSIONS,
    "stop words": "the tensorrtllm backend compares tokens, and answers with the word",
    "session_tokens": NO_SESSIONS,
    "session_end": NO_SESSIONS,
}
"""Checks that do not apply to a service of Triton's tensorrtllm backend, and why."""


def check_ensemble_metadata(client: Client, model: ServedModel) -> str:
    inputs = {**tensorrt_llm_client.TEXT_INPUTS}
    inputs["seed" if "seed" in model.inputs else "random_seed"] = inputs.pop("random_seed")
    require_tensors(model, inputs, tensorrt_llm_client.OUTPUTS)
    window, sinks = model.parameter("max_attention_window"), model.parameter("sink_token_length")
    return f"{len(inputs)} inputs, {len(tensorrt_llm_client.OUTPUTS)} outputs, decoupled, W = {window}, S = {sinks}"


def check_bad_ensemble_requests(client: Client, model: ServedModel) -> str:
    limit = model.parameter("max_input_len")
    require_refusal(client, f"a prompt beyond {limit} tokens", "max_input_len", text_input=PROMPT * limit)
    require_refusal(client, "max_tokens -1", "max_tokens", text_input=PROMPT, max_tokens=-1)
    return "2 refused, each with its own error"


def checks_for(client: Client) -> dict[str, Check]:
    """The checks, as they are done on the service that ``client`` speaks to."""
    if client.keeps_sessions:
        return CHECKS
    return {**CHECKS, "metadata": check_ensemble_metadata, "bad requests": check_bad_ensemble_requests}


def run_check(name: str, check: Check, client: Client, model: ServedModel) -> CheckResult:
    if not client.keeps_sessions and name in NOT_OF_TENSORRT_LLM:
        return CheckResult(name, None, NOT_OF_TENSORRT_LLM[name])
    try:
        return CheckResult(name, True, check(client, model))
    except (CheckFailed, TrtstreamError) as error:
        return CheckResult(name, False, str(error))


@click.command()
@service_options
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def smoke(url: str, model_name: str, tls_ca: Path | None, as_json: bool) -> None:
    """Check a served model from the client side; exit 1 if any check fails."""
    from rich.console import Console

    results: list[CheckResult] = []
    in_terminal = sys.stdout.isatty()
    with connect(url, model_name, tls_ca) as client, Console(stderr=True).status("") as status:
        model, model_name = client.model(), client.model_name
        for name, check in checks_for(client).items():
            status.update(f"checking: {name}")
            results.append(run_check(name, check, client, model))
            if not (as_json or in_terminal):
                click.echo(plain_line(results[-1]))
    passed = not any(result.passed is False for result in results)
    if as_json:
        report = {"url": url, "model_name": model_name, "passed": passed}
        click.echo(json.dumps({**report, "checks": [asdict(result) for result in results]}, indent=2))
    elif in_terminal:
        print_results(results)
    sys.exit(0 if passed else 1)


VERDICTS = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("n/a", "dim")}


def plain_line(result: CheckResult) -> str:
    return f"{VERDICTS[result.passed][0]:<7}{result.name:<20}{result.detail}"


def print_results(results: Sequence[CheckResult]) -> None:
    from rich.text import Text

    rows = [(result.name, Text(*VERDICTS[result.passed]), Text(result.detail)) for result in results]
    print_table(("check", "", "measured"), rows, left=3)
