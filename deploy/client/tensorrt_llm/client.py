"""The client of Triton's tensorrtllm backend, which keeps no sessions: they are kept here."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from trtstream.deploy.client.tensorrt_llm.checks import CHECKS
from trtstream.deploy.client.tensorrt_llm.tensors import (
    ENGINE_MODEL,
    ENGINE_NAMES,
    ENSEMBLE,
    ID_INPUTS,
    NO_END_ID,
    TEXT_INPUTS,
)
from trtstream.deploy.client.triton import DEFAULT_URL, Check, Response, ServedModel, TritonClient, make_tensor
from trtstream.deploy.contract import to_array
from trtstream.errors import TrtstreamError, one_line
from trtstream.runtime.requests import join

Responses = Generator[Response, None, None]

RESENDS = "this service keeps no sessions: recent turns are sent again with each new one"
MAX_INPUT_LEN = "max_input_len"
"""A parameter of the ensemble: how many tokens a prompt may have."""

MAX_TOKENS = 256


@dataclass
class History:
    """This side's memory of a session: chat messages or token ids, and how many tokens were generated in it."""

    messages: list[dict[str, str]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    generated: int = 0


class TensorrtLlmClient(TritonClient):
    """The interface of `Client`; the server lacks these, so they are done here:

    * Sessions, of ``chat`` turns and of ``input_ids``: the recent turns go along with each new one, as many as fit into
      the engine's max_input_len. ``session_tokens`` counts generated tokens, and is not checked.
    * ``chat`` and ``system``: the engine's chat template is rendered here.
    * ``input_ids`` go to the engine's own model, without tokenizing and detokenizing: the answer has no text.
    * A last, empty response has the ``finish_reason``: ``length`` after ``max_tokens`` tokens, else ``stop``.
    """

    checks: ClassVar[Mapping[str, Check | str]] = CHECKS

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model_name: str = ENSEMBLE,
        tls_ca: Path | None = None,
        *,
        timeout: float = 120.0,
    ) -> None:
        super().__init__(url, model_name, tls_ca, timeout=timeout)
        self._histories: dict[str | None, History] = {}

    @cached_property
    def served(self) -> ServedModel:
        return self.model()

    def session_note(self, session_id: str) -> str:
        return RESENDS

    def require_resumable(self, session_id: str) -> None:
        raise TrtstreamError(f"--session {session_id}: {RESENDS}, and there is none to come back to; leave it out")

    def load_notes(self, turns: int) -> list[str]:
        note = f"the prompts are token ids: {ENGINE_MODEL} takes them, not {self.model_name}"
        return [note, RESENDS] if turns > 1 else [note]

    def generate(self, **inputs: Any) -> Responses:
        given = {name: value for name, value in inputs.items() if value is not None}
        given.pop("session_tokens", None)
        session_id = given.pop("session_id", None)
        if given.pop("session_end", False):
            self._histories.pop(session_id, None)
            if not given.keys() & {"text_input", "input_ids"}:
                yield Response("", (), (), "stop", 0, 0, 0, received_at=time.perf_counter())
                return
            session_id = None
        before = self._histories.get(session_id, History())
        if given.keys() >= {"text_input", "input_ids"}:
            raise TrtstreamError("text_input and input_ids were both given; give one of them")
        if given.pop("chat", False):
            turn = self._chat(given, before)
        elif "input_ids" in given:
            turn = self._continue(given, before)
        elif session_id is None:
            turn = History(), self._request(self.model_name, TEXT_INPUTS, {}, given, before)
        else:
            raise TrtstreamError("a session of this service takes chat turns or input_ids; leave session_id out")
        history, responses = turn
        answer: list[Response] = []
        try:
            with contextlib.closing(responses):
                for response in responses:
                    answer.append(response)
                    yield response
        except TrtstreamError:
            answer.clear()  # a turn that fails leaves nothing in the session
            raise
        finally:
            if answer and session_id is not None:
                joined = join(answer)
                history.messages.append({"role": "assistant", "content": joined.text})
                history.ids.extend(joined.token_ids)
                history.generated = before.generated + len(joined.token_ids)
                self._histories[session_id] = history

    def _chat(self, given: dict[str, Any], before: History) -> tuple[History, Responses]:
        """The conversation with the new message. Its oldest turns are left out until the server has room for it."""
        messages = [*before.messages]
        if (system := given.pop("system", None)) and not messages:
            messages.append({"role": "system", "content": system})
        messages.append({"role": "user", "content": given.pop("text_input")})
        pinned = 1 if messages[0]["role"] == "system" else 0
        while True:
            given["text_input"] = self._render(messages)
            responses = self._request(self.model_name, TEXT_INPUTS, {}, given, before)
            try:
                first = next(responses)
            except TrtstreamError as error:
                if error.code != "too_long" or len(messages) - pinned < 3:
                    raise
                del messages[pinned : pinned + 2]
            else:
                return History(messages), _prepend(first, responses)

    def _continue(self, given: dict[str, Any], before: History) -> tuple[History, Responses]:
        new, limit = given.pop("input_ids"), self.served.parameter(MAX_INPUT_LEN)
        if len(new) > limit:
            raise TrtstreamError(f"input_ids has {len(new)} tokens; the engine's max_input_len is {limit}")
        ids = [*before.ids, *new][-limit:]
        given |= {"input_ids": ids, "input_lengths": len(ids)}
        given.setdefault("end_id", self.served.parameter("end_id"))
        return History(ids=[*ids]), self._request(ENGINE_MODEL, ID_INPUTS, ENGINE_NAMES, given, before)

    def _request(
        self, model_name: str, datatypes: dict[str, str], names: dict[str, str], given: dict[str, Any], before: History
    ) -> Responses:
        values = {"max_tokens": MAX_TOKENS, **_sampling(given)}
        if values.pop("ignore_eos", False):
            values["end_id"] = NO_END_ID
        unknown = sorted(values.keys() - datatypes.keys())
        if unknown:
            raise TrtstreamError(f"{unknown[0]} cannot be asked of {model_name!r} on this service; leave it out")
        names = {"random_seed": "seed" if "seed" in self.served.inputs else "random_seed", **names}
        tensors = [_batch_of_one(names.get(name, name), datatypes[name], value) for name, value in values.items()]
        count, received_at, request_id = 0, time.perf_counter(), str(secrets.randbits(63))
        running = True
        try:
            with contextlib.closing(self._stream(model_name, tensors, request_id)) as results:
                for received_at, result in results:
                    text, tokens = self._parse(result, model_name)
                    count += len(tokens)
                    yield _response(text, tokens, "", count, before, received_at)
            running = False
        except TrtstreamError:
            running = count > 0
            raise
        finally:
            if running and model_name == ENSEMBLE:
                self._stop(request_id)
        yield _response("", (), "length" if count >= values["max_tokens"] else "stop", count, before, received_at)

    def _stop(self, request_id: str) -> None:
        """Make the engine end a request. Triton's ensembles do not tell their steps that a client has left."""
        tensors = [_batch_of_one(name, "INT32", 1) for name in ("input_ids", "input_lengths", "request_output_len")]
        tensors.append(_batch_of_one("stop", "BOOL", True))
        with contextlib.suppress(TrtstreamError):  # the answer is empty
            list(self._stream(ENGINE_MODEL, tensors, request_id))

    def _parse(self, result: Any, model_name: str) -> tuple[str, tuple[int, ...]]:
        ids, lengths, text = (result.as_numpy(name) for name in ("output_ids", "sequence_length", "text_output"))
        if ids is None or lengths is None or (text is None and model_name != ENGINE_MODEL):
            raise TrtstreamError(
                f"the model {model_name!r} at {self.url} answers without output_ids, sequence_length or text_output: "
                "it was not packaged by trtstream; see --model-name"
            )
        tokens = tuple(ids[0, 0, : lengths[0, 0]].tolist())
        return ("" if text is None else text[0, 0].decode("utf-8", "replace")), tokens

    def _render(self, messages: list[dict[str, str]]) -> str:
        """The conversation up to the next answer. The template comes from the server and runs in jinja's sandbox."""
        from transformers.utils.chat_template_utils import render_jinja_template

        from trtstream.rendering import LimitReached, limited

        parameters = self.served.parameters
        template = parameters.get("chat_template")
        if not template:
            raise TrtstreamError(
                f"the model {self.model_name!r} at {self.url} has no chat template; send text without chat"
            )
        tokens: dict[str, Any] = {name: parameters.get(name, "") for name in ("bos_token", "eos_token")}
        try:
            # Annotated as a str, but a pair: the prompts, and the places of the assistant's tokens in them.
            with limited(template):
                prompts: Any = render_jinja_template(
                    [messages], chat_template=template, add_generation_prompt=True, **tokens
                )
        except LimitReached as error:
            raise TrtstreamError(f"the engine's chat template is stopped: {error}; fix it and rebuild") from None
        except Exception as error:  # a template may raise anything: what it asks for, or TypeErrors of its own
            raise TrtstreamError(f"the engine's chat template refuses this turn: {one_line(error)}") from error
        return prompts[0][0]


def _sampling(given: dict[str, Any]) -> dict[str, Any]:
    """The backend samples from one token, that is greedily, unless a request says how many or how likely ones."""
    values = dict(given)
    if not values.get("temperature"):
        values.pop("temperature", None)
        values["top_k"] = 1
    elif not values.get("top_k"):
        values.pop("top_k", None)
        values.setdefault("top_p", 1.0)
    return values


def _response(
    text: str, tokens: tuple[int, ...], reason: str, count: int, before: History, received_at: float
) -> Response:
    # As in sessions of a server, the last token of a turn counts only when the next turn feeds it.
    session_tokens = before.generated + max(count - 1, 0)
    return Response(text, tokens, (), reason, 0, count, session_tokens, received_at=received_at)


def _batch_of_one(name: str, datatype: str, value: Any) -> Any:
    return make_tensor(name, datatype, to_array(value, datatype))


def _prepend(first: Response, responses: Responses) -> Responses:
    with contextlib.closing(responses):
        yield first
        yield from responses
