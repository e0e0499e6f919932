"""Shared by the runtime's tests: clients of a scheduler, and a tokenizer whose tokens are bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trtstream.errors import TrtstreamError
from trtstream.runtime.requests import TurnOutput, TurnRequest
from trtstream.runtime.scheduler import Scheduler
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.turn import Turn

CHATML = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
Be kind.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
BOS, EOS, IM_START = 256, 257, 258  # EOS is <|im_end|>
ENDLESS = {"max_tokens": 1_000_000, "ignore_eos": True}
"""Options of a turn that runs until it is ended."""


def byte_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerBase:
    """Token ids are byte values, and from 256 on ``<s>``, ``<|im_end|>`` (end of sequence) and ``<|im_start|>``."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # as themselves, others from 256
    hidden = [byte for byte in range(256) if byte not in shown]
    vocabulary = {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    result.chat_template = chat_template
    return result


class Client:
    """Submits one turn and collects its outputs."""

    def __init__(self, scheduler: Scheduler, cancel_after: int | None = None, **request) -> None:
        self.outputs: list[TurnOutput | Exception] = []
        self._ended = threading.Event()
        self._submitted = threading.Event()
        self._cancel_after = cancel_after
        self.turn: Turn = scheduler.submit(TurnRequest(**request), self._take)
        self._submitted.set()

    def _take(self, output: TurnOutput | Exception) -> None:
        self.outputs.append(output)
        if len(self.outputs) == self._cancel_after:
            self._submitted.wait()
            self.turn.cancel()
        if isinstance(output, Exception) or output.finish_reason:
            self._ended.set()

    def wait(self) -> Client:
        """Returns the client when its turn has ended; raises the turn's error."""
        assert self._ended.wait(120), "the turn did not end"
        if isinstance(self.outputs[-1], Exception):
            raise self.outputs[-1]
        return self

    @property
    def ids(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def last(self) -> TurnOutput:
        return self.outputs[-1]


def started(scheduler: Scheduler, **request) -> Client:
    """A client whose turn has had its first token."""
    client = Client(scheduler, **request)
    wait_until(lambda: client.outputs)
    return client


def ask(scheduler: Scheduler, **request) -> Client:
    """Run one turn to its end."""
    return Client(scheduler, **request).wait()


def assert_same_greedy(engine: StreamingEngine, fed: list[int], ids: list[int], expected: list[int]) -> None:
    """Greedy ids may differ only where a fresh session that was fed ``fed`` has its best two logits within 1e-3."""
    assert len(ids) == len(expected)
    same = next((i for i, pair in enumerate(zip(ids, expected, strict=True)) if pair[0] != pair[1]), None)
    if same is not None:
        engine.reset(0)
        best = engine.prefill(0, fed + expected[:same]).topk(2).values
        assert best[0] - best[1] < 1e-3, f"token {same} is {ids[same]}, expected {expected[same]}"


def wait_until(condition: Callable[[], object]) -> None:
    for _ in range(1200):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("the condition never came true")


def refused(scheduler: Scheduler, **request) -> TrtstreamError:
    """The error that answers a turn."""
    with pytest.raises(TrtstreamError) as error:
        ask(scheduler, **{"text": "x", "max_tokens": 1, **request})
    return error.value
