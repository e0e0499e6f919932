"""Does a server stay as it is under clients of every kind? Many sessions, few lanes, half a million tokens.

    python -m benchmarks.soak --tokens 500000 --json benchmarks/results/soak.json

Each of 64 sessions on 8 lanes says scripted turns, forks, goes back, and leaves in the middle of answers; one request
in a hundred is hostile. Every answer is compared with an engine that nothing disturbed. The memory of the model's
process is sampled all along: in the second half it may not change by more than 2 %. In the end every lane must work.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from benchmarks import write_json
from benchmarks.conversations import Conversation, Undisturbed, build_tiny_engine, check_log
from benchmarks.crash.kills import life
from benchmarks.models import TINY_LLAMA
from tests.deploy.serving.processes import of_kind
from trtstream.deploy.client.client import Client
from trtstream.errors import TrtstreamError
from trtstream.machine import machine, resident_memory

LANES, SESSIONS = 8, 64
STUB = "triton_python_backend_stub"
HOSTILE: tuple[dict[str, Any], ...] = (
    {"input_ids": [TINY_LLAMA.vocab_size]},
    {"input_ids": [-1]},
    {"input_ids": [1], "max_tokens": 0},
    {"input_ids": [1], "text_input": "both"},
    {"input_ids": [1], "parent_turn": "no id"},
    {"input_ids": [1], "parent_turn": "0" * 32},
    {"input_ids": [1], "temperature": float("nan")},
    {"input_ids": [1], "session_tokens": 1 << 30, "session_id": "nobody"},
    {"text_input": "this engine has no tokenizer"},
    {},
)
VANISH, FORK, REWIND, HOSTILITY = 0.05, 0.05, 0.05, 0.01  # of the turns
SAMPLES = 200
TOLERANCE = 0.02


@dataclass
class Progress:
    """The tokens of all clients so far, and when there are enough."""

    enough: int
    tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, tokens: int) -> None:
        with self.lock:
            self.tokens += tokens

    @property
    def is_over(self) -> bool:
        return self.tokens >= self.enough


@dataclass
class Talker:
    """The client of one session."""

    conversation: Conversation
    random: Random
    progress: Progress
    did: Counter[str] = field(default_factory=Counter)
    goes_back: bool = False

    def talk(self, url: str) -> None:
        with Client(url) as client:
            self.say(client)  # there is nothing before it to go back to
            while not self.progress.is_over and self.conversation.said < len(self.conversation.script):
                for share, act in (
                    (HOSTILITY, self._insult),
                    (VANISH, self._vanish),
                    (FORK, self._fork),
                    (REWIND, self._rewind),
                ):
                    if self.random.random() < share:
                        self.did[act.__name__.strip("_")] += 1
                        act(client)
                self.say(client)

    def say(self, client: Client) -> None:
        inputs = {**self.conversation.inputs(), "session_rewind": self.goes_back or None, "stream": False}
        answer = self._until_free(lambda: client.answer(**inputs))
        self.conversation.hear(answer)
        self.goes_back = False
        self.progress.add(answer.num_input_tokens + answer.num_output_tokens)

    def _until_free(self, request: Callable[[], Any]) -> Any:
        """The answer, once a turn whose client left has ended."""
        while True:
            try:
                return request()
            except TrtstreamError as error:
                if error.code != "busy":
                    raise
                time.sleep(0.01)

    def _insult(self, client: Client) -> None:
        inputs = self.random.choice(HOSTILE)
        try:
            client.answer(**inputs)
        except TrtstreamError as error:
            if error.code != "internal":
                return
        self.conversation.faults.append(f"{inputs} is not refused as it should be")

    def _vanish(self, client: Client) -> None:
        """Leave after some tokens. The answer's beginning is kept, so the client goes back behind it."""
        inputs = {**self.conversation.inputs(), "session_rewind": self.goes_back or None, "max_tokens": 1 << 20}
        wanted = self.random.randint(1, 20)

        def leave() -> None:
            with closing(client.generate(**inputs)) as responses:
                for number, _ in enumerate(responses, 1):
                    if number == wanted:
                        return

        self._until_free(leave)
        self.goes_back = True

    def _fork(self, client: Client) -> None:
        inputs = {**self.conversation.inputs(), "session_id": f"{self.conversation.key} fork", "stream": False}
        answer = client.answer(**inputs)
        expected = self.conversation.script[self.conversation.said].answer
        if answer.token_ids != expected:
            self.conversation.faults.append(f"{self.conversation.key}: a fork says {answer.token_ids}, not {expected}")
        client.answer(session_id=inputs["session_id"], session_end=True)

    def _rewind(self, client: Client) -> None:
        del self.conversation.turn_ids[max(1, self.conversation.said - self.random.randint(1, 3)) :]
        self.goes_back = True


def soak(tokens: int, sessions: int, seed: int) -> dict[str, Any]:
    """Returns what came of it, for JSON; memory in bytes, at equal steps of the tokens."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trtstream-soak-") as name:
        folder = Path(name)
        store = f"sqlite:///{folder}/sessions.db"
        engine = build_tiny_engine(folder / "engine", LANES)
        undisturbed = Undisturbed(folder / "undisturbed", sessions, seed)
        conversations = [Conversation(f"session {lane}") for lane in range(sessions)]
        for lane, conversation in enumerate(conversations):
            fed = 0
            while fed < 1.2 * tokens / sessions:  # some sessions are faster than others
                conversation.script.append(turn := undisturbed.next_turn(lane))
                fed += len(turn.prompt) + len(turn.answer)
        progress = Progress(tokens)
        talkers = [
            Talker(conversation, Random(f"{seed}/{conversation.key}"), progress) for conversation in conversations
        ]
        memory: list[int] = []
        faults: list[str] = []
        with life(engine, folder / "log", store) as server, ThreadPoolExecutor(sessions) as pool:
            model = of_kind(server.process.pid, STUB)
            work = [pool.submit(talker.talk, server.grpc_url) for talker in talkers]
            while not all(future.done() for future in work):
                time.sleep(0.05)
                if progress.tokens >= len(memory) * tokens / SAMPLES:
                    memory.append(resident_memory(model))
            faults += [f"a client failed: {error}" for future in work if (error := future.exception()) is not None]
            lanes = pool.map(lambda _: Client(server.grpc_url).answer(input_ids=[1], max_tokens=8), range(LANES))
            if len(list(lanes)) != LANES:
                faults.append("a lane is stuck")
        did = sum((talker.did for talker in talkers), Counter[str]())
        faults += check_log(store, conversations, others=3 * did["rewind"])[0]
    faults += [fault for conversation in conversations for fault in conversation.faults]
    second_half = memory[len(memory) // 2 :]
    return {
        "tokens": progress.tokens,
        "sessions": sessions,
        "lanes": LANES,
        "seconds": round(time.monotonic() - started),
        "did": did,
        "resident_bytes": memory,
        "spread": (max(second_half) - min(second_half)) / median(second_half),
        "faults": faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    run = soak(arguments.tokens, arguments.sessions, arguments.seed)
    if run["spread"] > TOLERANCE:
        run["faults"].append(f"memory changes by {run['spread']:.1%} in the second half")
    print(f"{run['tokens']} tokens, {run['sessions']} sessions, {run['lanes']} lanes, {run['seconds']} s; {run['did']}")
    print(f"memory: {run['resident_bytes'][-1] / 1e6:.0f} MB; it changes by {run['spread']:.2%} in the second half")
    for fault in run["faults"]:
        print(f"FAULT: {fault}")
    write_json(arguments.json, {"machine": machine(), **run})
    sys.exit(bool(run["faults"]))


if __name__ == "__main__":
    main()
