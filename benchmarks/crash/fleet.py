"""Two servers on one PostgreSQL, either of which takes any turn, while now this and now that one fails."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.conversations import Conversation, Undisturbed, build_tiny_engine, check_log
from benchmarks.crash.kills import GIVE_UP_SECONDS, LANES, life
from tests.deploy.server import Server
from tests.deploy.serving.processes import family
from tests.sessions.postgres import Postgres
from tests.sessions.proxy import Proxy
from trtstream.deploy.client.client import Client
from trtstream.deploy.client.triton import Response
from trtstream.errors import TrtstreamError

COMMIT_SECONDS = 2.0  # after which an outcome is unknown
PATIENCE_SECONDS = 4.0  # of a client
STOPPED_SECONDS = 7.0  # at most
PAUSE_SECONDS = 0.4
ALLOWED = ("busy", "conflict", "unavailable", "unknown", None)
TURNS_A_ROUND = 80  # at most, of a conversation
SILENT = "sent nothing"  # in the error of a client that has no patience left
REPEAT_SECONDS = 0.2
ACTIONS = ("stop", "kill", "cut", "lose", "hang")


class Member:
    """One of the servers, and its way to the database."""

    def __init__(self, engine: Path, folder: Path, postgres: Postgres, name: str) -> None:
        self._engine, self._folder, self._name = engine, folder, name
        self.proxy = Proxy(postgres.folder, name)
        self._store = self.proxy.url(postgres.url)
        self._life = ExitStack()
        self._lives = 0
        self.server: Server | None = None

    def start(self) -> None:
        log = self._folder / f"{self._name}{self._lives}.log"
        self._lives += 1
        options = ("--commit-timeout", str(COMMIT_SECONDS))
        self.server = self._life.enter_context(life(self._engine, log, self._store, *options))

    def kill(self) -> None:
        self.server = None
        self._life.close()

    def close(self) -> None:
        self.kill()
        self.proxy.close()

    def act(self, action: str, random: Random) -> None:
        """What fails; it is well again when this returns."""
        seconds = random.uniform(1.0, STOPPED_SECONDS)
        if action == "stop":
            assert self.server is not None
            processes = {self.server.process.pid} | family(self.server.process.pid)
            for process in processes:
                os.kill(process, signal.SIGSTOP)
            time.sleep(seconds)
            for process in processes:
                os.kill(process, signal.SIGCONT)
        elif action == "kill":
            self.kill()
            self.start()
        elif action == "hang":
            self.proxy.hangs = True
            time.sleep(STOPPED_SECONDS)
            self.proxy.hangs = self.proxy.swallows = False
        else:  # connections are lost before a COMMIT arrives, or before its answer does
            self.proxy.forwards = action == "lose"
            self.proxy.cuts = random.randint(1, 12)
            time.sleep(seconds / 2)
            self.proxy.cuts = 0


@dataclass
class Rivalry:
    """A conversation whose turns go to either server, and sometimes to both at once: again, or as a rival's request."""

    conversation: Conversation
    members: list[Member]
    random: Random
    codes: Counter[str] = field(default_factory=Counter)

    def converse(self, turns: int, over: threading.Event) -> None:
        """Say up to ``turns`` turns; none begins once it is ``over``."""
        end = self.conversation.said + turns
        while self.conversation.said < end and not over.wait(self.random.expovariate(1 / PAUSE_SECONDS)):
            self._say(attempt=0)

    def _say(self, attempt: int) -> None:
        """The next turn, until it is answered."""
        ids = [f"{self.conversation.request_id(self.conversation.said)}#{attempt}"]
        answers: list[Response] = []
        while not answers:
            time.sleep(self.random.uniform(0.0, REPEAT_SECONDS))
            requests = [self.random.choice(ids)]
            if (chance := self.random.random()) < 0.2:
                requests *= 2
            elif chance < 0.4 and not attempt and self.conversation.said:
                # A rival of a first turn would follow it, and one of a turn that goes back would go back too.
                ids.append(f"{ids[0]} rival")
                requests = ids[:1] + ids[-1:]
            answers = self._ask(requests, rewind=attempt > 0)
        if len({answer.turn_id for answer in answers}) > 1:
            self.conversation.faults.append(f"{ids[0]}: two servers gave it different turns")
        if answers[0].finish_reason == "cancelled":  # its client had no patience: the turn is there, cut short
            self.codes["cancelled"] += 1
            self._say(attempt + 1)
        else:
            self.conversation.hear(answers[0])

    def _ask(self, request_ids: list[str], rewind: bool) -> list[Response]:
        """The answers of different servers to these requests at the same time."""
        members = self.random.sample(self.members, len(request_ids))
        with ThreadPoolExecutor(len(members)) as pool:
            answers = pool.map(self._ask_one, members, request_ids, [rewind] * len(members))
        return [answer for answer in answers if answer is not None]

    def _ask_one(self, member: Member, request_id: str, rewind: bool) -> Response | None:
        server = member.server
        if server is None:
            return None
        inputs: dict[str, Any] = self.conversation.inputs()
        try:
            with Client(server.grpc_url, timeout=PATIENCE_SECONDS) as client:
                return client.answer(request_id=request_id, session_rewind=rewind or None, **inputs)
        except TrtstreamError as error:
            self.codes[error.code or ("silent" if SILENT in str(error) else "gone")] += 1
            if error.code not in ALLOWED:
                self.conversation.faults.append(f"{request_id} was refused: {error.code}: {error}")
            return None


@contextmanager
def fleet(folder: Path, postgres: Postgres, count: int) -> Iterator[list[Member]]:
    """Servers that are ready."""
    engine = build_tiny_engine(folder / "engine", LANES)
    with ExitStack() as stack:
        members = [Member(engine, folder, postgres, f"server{number}") for number in range(count)]
        for member in members:
            stack.enter_context(closing(member))
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(Member.start, members))
        yield members


def run_rivals(folder: Path, postgres: Postgres, sessions: int, rounds: int, seed: int) -> dict[str, Any]:
    """Each of ``rounds`` has one server fail in each way. Returns what came of them, for JSON."""
    random = Random(seed)
    undisturbed = Undisturbed(folder / "undisturbed", sessions, seed)
    turns = rounds * TURNS_A_ROUND
    conversations = [
        Conversation(f"session {lane}", [undisturbed.next_turn(lane) for _ in range(1 + turns)])
        for lane in range(sessions)
    ]
    actions = [*ACTIONS] * rounds
    random.shuffle(actions)
    over = threading.Event()
    with fleet(folder, postgres, 2) as members:
        rivalries = [Rivalry(conversation, members, Random(random.random())) for conversation in conversations]
        for rivalry in rivalries:
            rivalry.converse(1, over)  # a first turn that is cut short could not be taken back
        threads = [threading.Thread(target=rivalry.converse, args=(turns, over), daemon=True) for rivalry in rivalries]
        for thread in threads:
            thread.start()
        for action in actions:
            over.wait(random.uniform(0.2, 1.0))
            random.choice(members).act(action, random)
            said = sum(conversation.said for conversation in conversations)
            print(f"{action}: {said} turns of {len(threads)} sessions", file=sys.stderr)
        over.set()
        for thread in threads:
            thread.join(GIVE_UP_SECONDS)
    faults, unanswered = check_log(postgres.url, conversations)
    faults += [fault for conversation in conversations for fault in conversation.faults]
    codes = sum((rivalry.codes for rivalry in rivalries), Counter[str]())
    if unanswered or any(thread.is_alive() for thread in threads):
        faults.append(f"{unanswered} turns were committed and never answered")
    faults += [f"no client got [{code}]: nothing was tried" for code in ("conflict", "unknown") if not codes[code]]
    said = sum(conversation.said for conversation in conversations)
    return {
        "near_ties_avoided": undisturbed.near_ties,
        "answered": said,
        "actions": Counter(actions),
        "codes": codes,
        "faults": faults,
    }
