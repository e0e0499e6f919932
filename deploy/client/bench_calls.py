"""The turns that ``trtstream bench`` measures, over either protocol: Triton's gRPC, or OpenAI's on a gateway."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trtstream.deploy.client.connect import connect
from trtstream.deploy.client.triton import is_loopback, new_session
from trtstream.errors import TrtstreamError, one_line
from trtstream.extras import require_extra

if TYPE_CHECKING:
    from openai import OpenAI

SECONDS = 120.0  # that a gateway may stay silent
WORDS = (
    "a", "all", "and", "are", "as", "at", "be", "by", "can", "city", "come", "day", "do", "far", "find", "for",
    "from", "give", "go", "good", "have", "he", "her", "his", "house", "how", "if", "in", "is", "know", "like",
    "long", "make", "man", "more", "new", "no", "now", "of", "on", "one", "other", "out", "over", "part",
    "people", "place", "say", "see", "so", "some", "take", "than", "that", "the", "then", "there", "this", "time",
    "to", "two", "up", "very", "water", "way", "we", "what", "when", "which", "who", "will", "with", "word",
    "work", "world", "year", "you",
)  # fmt: skip


@dataclass(frozen=True)
class Load:
    """A level's load: ``requests`` sessions of ``turns`` turns, ``input_tokens`` in and ``output_tokens`` out each.

    Prompts are random: the same in every run, another one in every turn. They are token ids below ``vocab_size``, or
    where that is None as many common words, most of which are one token.
    """

    url: str
    model_name: str
    vocab_size: int | None
    requests: int
    input_tokens: int
    output_tokens: int
    turns: int

    def prompt(self, request: int, turn: int) -> list[int]:
        rng = random.Random(f"{request} {turn}")
        return [rng.randrange(self.vocab_size or 1) for _ in range(self.input_tokens)]

    def text(self, request: int, turn: int) -> str:
        return " ".join(random.Random(f"{request} {turn}").choices(WORDS, k=self.input_tokens))


@dataclass(frozen=True)
class Answer:
    """When a turn's first and last token arrived, in seconds of `time.perf_counter`, and how many there were."""

    first_token: float
    last_token: float
    output_tokens: int


Ask = Callable[[int, int], Answer]
"""``ask(request, turn)``: run this turn and wait for its end. Raises TrtstreamError."""


class Caller(AbstractContextManager["Caller"]):
    """One client of the service, for one thread."""

    @abstractmethod
    def session(self) -> AbstractContextManager[Ask]:
        """A session for a request's turns, which ends with the context."""

    @abstractmethod
    def cancel(self) -> None:
        """End the turn that runs. Any thread may call this."""


def speaks_openai(url: str) -> bool:
    """Whether ``url`` names a gateway, and not Triton's gRPC service."""
    return url.startswith(("http://", "https://"))


def new_caller(load: Load, tls_ca: Path | None) -> Caller:
    return OpenAiCaller(load, tls_ca) if speaks_openai(load.url) else TritonCaller(load, tls_ca)


class TritonCaller(Caller):
    def __init__(self, load: Load, tls_ca: Path | None) -> None:
        self._load = load
        self._client = connect(load.url, load.model_name, tls_ca)

    def __exit__(self, *_: object) -> None:
        self._client.__exit__()

    @contextlib.contextmanager
    def session(self) -> Iterator[Ask]:
        with new_session(self._client, "bench") if self._load.turns > 1 else nullcontext() as session_id:
            yield partial(self._ask, session_id)

    def cancel(self) -> None:
        self._client.cancel()

    def _ask(self, session_id: str | None, request: int, turn: int) -> Answer:
        wanted = self._load.output_tokens
        responses = self._client.generate(
            input_ids=self._load.prompt(request, turn),
            max_tokens=wanted,
            ignore_eos=True,
            temperature=0.0,
            stream=True,
            session_id=session_id,
        )
        arrivals = [(response.received_at, len(response.token_ids)) for response in responses]
        found = sum(tokens for _, tokens in arrivals)
        if found != wanted:
            raise TrtstreamError(f"expected {wanted} output tokens, found {found}")
        times = [received_at for received_at, tokens in arrivals if tokens]
        return Answer(times[0], times[-1], found)


class OpenAiCaller(Caller):
    """Streamed responses of ``/v1/responses``, each turn with the id of the one before it."""

    def __init__(self, load: Load, tls_ca: Path | None) -> None:
        self._load = load
        self._client = openai_client(load.url, tls_ca)
        self._cancelled = threading.Event()

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @contextlib.contextmanager
    def session(self) -> Iterator[Ask]:
        responses: list[str] = []
        try:
            yield partial(self._ask, responses)
        finally:
            for response in reversed(responses):
                with contextlib.suppress(TrtstreamError), errors_of(self._load.url):
                    self._client.responses.delete(response)

    def cancel(self) -> None:
        self._cancelled.set()

    def _ask(self, responses: list[str], request: int, turn: int) -> Answer:
        options: dict[str, Any] = {"previous_response_id": responses[-1]} if responses else {}
        first = last = 0.0
        with (
            errors_of(self._load.url),
            self._client.responses.create(
                model=self._load.model_name,
                input=self._load.text(request, turn),
                max_output_tokens=self._load.output_tokens,
                store=self._load.turns > 1,
                stream=True,
                **options,
            ) as events,
        ):
            for event in events:
                last = time.perf_counter()
                if self._cancelled.is_set():
                    raise TrtstreamError("the request was cancelled")
                if event.type == "response.output_text.delta":
                    first = first or last
                elif event.type == "response.failed":
                    error = event.response.error
                    raise TrtstreamError(
                        f"the response failed: {error.message if error else 'the gateway says no more'}"
                    )
                elif event.type in ("response.completed", "response.incomplete"):
                    if self._load.turns > 1:
                        responses.append(event.response.id)
                    usage = event.response.usage
                    return Answer(first or last, last, usage.output_tokens if usage else 0)
        raise TrtstreamError(f"the gateway at {self._load.url} ended a response in the middle")


def openai_client(url: str, tls_ca: Path | None) -> OpenAI:
    """openai-python's client of the gateway at ``url``. Its key is OPENAI_API_KEY, if there is one."""
    require_extra("openai", "gateway", "a bench over OpenAI's protocol")
    import ssl

    import openai

    verify: Any = True if tls_ca is None else ssl.create_default_context(cafile=str(tls_ca))
    on_this_machine = is_loopback(f"{urlsplit(url).hostname}:0")
    http_client = openai.DefaultHttpxClient(verify=verify, trust_env=not on_this_machine)
    return openai.OpenAI(
        base_url=f"{url.rstrip('/').removesuffix('/v1')}/v1",
        api_key=os.environ.get("OPENAI_API_KEY") or "none",
        max_retries=0,
        timeout=SECONDS,
        http_client=http_client,
    )


@contextlib.contextmanager
def errors_of(url: str) -> Iterator[None]:
    """openai-python's errors as TrtstreamErrors of one line."""
    import httpx2
    import openai

    try:
        yield
    except httpx2.HTTPError as error:  # in the middle of a stream
        raise TrtstreamError(f"the gateway at {url} went away in the middle of an answer: {one_line(error)}") from error
    except openai.APIConnectionError as error:
        raise TrtstreamError(f"no gateway answers at {url}: {one_line(error.__cause__ or error)}") from error
    except openai.APIError as error:
        raise TrtstreamError(f"the gateway at {url}: {error.message}") from error
