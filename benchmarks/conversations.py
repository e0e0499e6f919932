"""Greedy conversations whose every token is known beforehand, and clients that hold them with a server that may die.

`Undisturbed` makes them on an engine of its own: prompts are random, and one whose answer comes near a tie is thrown
away, so that no answer depends on the batch or on how a session's cache was made.
"""

from __future__ import annotations

import string
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from sqlalchemy import create_engine, text

from benchmarks.models import TINY_LLAMA, RandomCheckpoint
from tests.deploy.tokenizer import write_byte_tokenizer
from trtstream.build.cpu import build_cpu_engine
from trtstream.deploy.client.client import Client
from trtstream.deploy.client.triton import Response
from trtstream.engine_dir import TOKENIZER
from trtstream.errors import TrtstreamError
from trtstream.runtime.loading import load_engine
from trtstream.runtime.prompt import first_prompt, next_prompt
from trtstream.runtime.requests import TurnRequest
from trtstream.runtime.tokenizer import load_tokenizer
from trtstream.sessions.records import TurnRecord
from trtstream.sessions.turn_log import TurnLog
from trtstream.settings import BuildConfig

TIE = 1e-3  # between the two best logits: twice what batches and rebuilt caches move them, and more
MAX_PROMPT, MAX_ANSWER = 24, 16  # tokens
PAUSE_SECONDS = 0.05  # a client's, on average, between two turns
TRY_AGAIN = ("busy", "unavailable", "unknown")
"""Codes of errors after which the same request may be sent to the same server again."""
GONE = (None, "draining")
"""Codes of errors, None among them, with which a server ends."""


class ChatCheckpoint(RandomCheckpoint):
    """Random weights with a tokenizer of ASCII's characters and a chat template."""

    def save_tokenizer(self, folder: Path) -> bool:
        write_byte_tokenizer(folder, self.model.vocab_size)
        return True


def build_tiny_engine(folder: Path, lanes: int, chats: bool = False) -> Path:
    """A random Llama of two layers, whose sessions see 64 tokens; without a tokenizer, unless it ``chats``."""
    kind = ChatCheckpoint if chats else RandomCheckpoint
    checkpoint = kind(TINY_LLAMA, torch.float32, torch.device("cpu"), std=0.2)
    sizes = BuildConfig(max_batch_size=lanes, max_num_tokens=32, max_attention_window=64)
    build_cpu_engine(checkpoint, sizes, folder, lambda done, total: None)  # type: ignore[arg-type]
    return folder


@dataclass(frozen=True)
class ScriptedTurn:
    """A prompt and its greedy answer, as token ids. In a chat, ``said`` and ``heard`` are both as texts."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    said: str = ""
    heard: str = ""


class Undisturbed:
    """Makes conversations, each in a lane of an engine that it shares with nobody."""

    def __init__(self, folder: Path, conversations: int, seed: int, chats: bool = False) -> None:
        self._engine = load_engine(build_tiny_engine(folder, conversations, chats))
        self._tokenizer = load_tokenizer(folder / TOKENIZER)
        self._random = Random(seed)
        self._pending: dict[int, int] = {}
        self.near_ties = 0
        for lane in range(conversations):
            self._engine.reset(lane)

    def next_turn(self, lane: int) -> ScriptedTurn:
        """One more turn of the conversation in ``lane``."""
        while True:
            prompt = [self._random.randrange(TINY_LLAMA.vocab_size) for _ in range(self._random.randint(1, MAX_PROMPT))]
            answer = self._answer(lane, prompt, self._random.randint(1, MAX_ANSWER))
            if answer:
                return ScriptedTurn(tuple(prompt), tuple(answer))
            self.near_ties += 1

    def next_chat_turn(self, lane: int) -> ScriptedTurn:
        """The same of a chat: the template's text begins its turns, and no token ends one early."""
        assert self._tokenizer is not None
        ends = self._engine.model.eos_token_ids
        while True:
            said = "".join(self._random.choices(string.ascii_letters, k=self._random.randint(1, MAX_PROMPT)))
            request, pending = TurnRequest(text=said, chat=True), self._pending.get(lane)
            if pending is None:
                prompt = first_prompt(request, self._tokenizer, self._engine.build).token_ids
            else:
                prompt = next_prompt(request, self._tokenizer, pending).token_ids
            answer = self._answer(lane, prompt, self._random.randint(1, MAX_ANSWER), ends)
            if answer:
                return ScriptedTurn(tuple(prompt), tuple(answer), said, self._tokenizer.decode(answer))
            self.near_ties += 1

    def _answer(self, lane: int, prompt: list[int], count: int, refused: Sequence[int] = ()) -> list[int]:
        engine, pending = self._engine, self._pending.get(lane)
        engine.begin_turn(lane)
        logits = engine.prefill(lane, prompt if pending is None else [pending, *prompt])
        answer: list[int] = []
        while True:
            best = logits.topk(2)
            if best.values[0] - best.values[1] < TIE or int(best.indices[0]) in refused:
                engine.rollback_turn(lane)
                return []
            answer.append(int(best.indices[0]))
            if len(answer) == count:
                engine.commit_turn(lane)
                self._pending[lane] = answer[-1]
                return answer
            logits = engine.decode([lane], answer[-1:])[0]


@dataclass
class Conversation:
    """A session as its client knows it: what it will say and hear, and the ids of the turns that were answered."""

    key: str
    script: list[ScriptedTurn] = field(default_factory=list)
    turn_ids: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def said(self) -> int:
        """How many turns were answered."""
        return len(self.turn_ids)

    def request_id(self, number: int) -> str:
        return f"{self.key}/{number}"

    def inputs(self) -> dict[str, Any]:
        """The request of the next turn, which is also that of a turn that was not answered."""
        turn = self.script[self.said]
        return {
            "input_ids": list(turn.prompt),
            "session_id": self.key,
            "parent_turn": self.turn_ids[-1] if self.turn_ids else None,
            "max_tokens": len(turn.answer),
            "ignore_eos": True,
            "stream": True,
        }

    def hear(self, answer: Response) -> None:
        """Compare the answer of the next turn with the script."""
        turn = self.script[self.said]
        if answer.token_ids != turn.answer:
            self.faults.append(f"{self.key}: turn {self.said} is {answer.token_ids} and should be {turn.answer}")
        self.turn_ids.append(answer.turn_id)

    def hear_text(self, text: str, turn_id: str) -> None:
        """The same of an answer in a chat."""
        turn = self.script[self.said]
        if text != turn.heard:
            self.faults.append(f"{self.key}: turn {self.said} is {text!r} and should be {turn.heard!r}")
        self.turn_ids.append(turn_id)

    def converse(self, url: str, random: Random) -> None:
        """Say the script, until its end or that of the server. A turn that fails is said again."""
        with Client(url) as client:
            while self.said < len(self.script):
                time.sleep(random.expovariate(1 / PAUSE_SECONDS))
                try:
                    self.hear(client.answer(request_id=self.request_id(self.said), **self.inputs()))
                except TrtstreamError as error:
                    self.errors[error.code or "no answer"] += 1
                    if error.code not in (*TRY_AGAIN, *GONE):
                        self.faults.append(f"{self.key}: turn {self.said} was refused: {error.code}: {error}")
                    if error.code not in TRY_AGAIN:
                        return


def check_chats(store: str, conversations: list[Conversation]) -> list[str]:
    """What is wrong with chats in the store of servers that are down, whose clients had no ids for their requests.

    It must have each answered turn, in order; a client that asked again may have left another beside one.
    """
    faults: list[str] = []
    with closing(TurnLog(store)) as log:
        for conversation in conversations:
            branch = log.branch(bytes.fromhex(conversation.turn_ids[-1])) if conversation.said else []
            faults += _check_branch(conversation, branch, unanswered=0)
    return faults


def _check_branch(conversation: Conversation, branch: Sequence[TurnRecord], unanswered: int) -> list[str]:
    """What is wrong with a conversation's turns in the log, of which up to ``unanswered`` have not been heard of."""
    ids, said, faults = [turn.id.hex() for turn in branch], conversation.said, []
    if ids[:said] != conversation.turn_ids or len(ids) > said + unanswered:
        faults.append(f"{conversation.key}: the log has {ids} and its client {conversation.turn_ids}")
    for number, (turn, scripted) in enumerate(zip(branch, conversation.script, strict=False)):
        is_heard = turn.text == scripted.heard or not scripted.said  # only chats have texts
        if turn.output_ids != scripted.answer or not is_heard:
            faults.append(f"{conversation.key}: turn {number} in the log is another than the script's")
    return faults


def check_log(store: str, conversations: list[Conversation], others: int = 0) -> tuple[list[str], int]:
    """What is wrong in the store of a server that is down, and how many turns it has whose clients got no answer.

    It must have each answered turn of each conversation, once and in order, at most one more, and nothing else but
    turns that were cut short when their clients left, and ``others`` at most that clients have taken back.
    """
    faults: list[str] = []
    unanswered = expected_rows = 0
    with closing(TurnLog(store)) as log:
        for conversation in conversations:
            head = log.head(conversation.key)
            branch = [] if head is None else log.branch(head.id)
            expected_rows += len(branch)
            unanswered += len(branch) - conversation.said
            faults += _check_branch(conversation, branch, unanswered=1)
            for number, turn in enumerate(branch[: len(conversation.script)]):
                if turn.request_id and turn.request_id.split("#")[0] != conversation.request_id(number):
                    faults.append(f"{conversation.key}: turn {number} is that of request {turn.request_id}")
    engine = create_engine(store)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT count(*) FROM turns WHERE finish_reason <> 'cancelled'")).scalar_one()
    engine.dispose()
    if not expected_rows <= rows <= expected_rows + others:
        faults.append(f"the log has {rows} turns, of which {expected_rows} belong to the sessions")
    return faults, unanswered
