"""What do sessions in a store cost?

Everything is measured in turn with what it is compared with, in one process and on one engine. So is that with itself
(A/A): where it differs from itself by more than 1 %, the run does not count. Writes JSON and prints a table:

    python -m benchmarks.session_costs ENGINE --json benchmarks/results/session_costs.json
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import trtstream
from benchmarks import write_json
from benchmarks.markdown import table
from benchmarks.paired import in_turn, row
from trtstream.engine_dir import read_engine
from trtstream.machine import machine
from trtstream.runtime.llm import LLM
from trtstream.runtime.requests import TurnOutput, TurnRequest
from trtstream.sessions.records import Commit, TurnRecord, new_turn_id, token_array
from trtstream.sessions.turn_log import TurnLog

STORED_SESSIONS = 10_000
ITL_ROUNDS = 2  # times as many rounds as the others have, for an A/A comparison within 1 %
FORK_ROUNDS = 10
MAX_DIFFERENCE = 1.0  # percent, between a case and itself


class Outputs:
    """A turn's outputs, and when they came, in seconds of `time.perf_counter`."""

    def __init__(self, llm: LLM, **request: Any) -> None:
        self.times: list[float] = []
        self.error: Exception | None = None
        self.submitted_at = time.perf_counter()
        self.turn = llm.scheduler.submit(TurnRequest(ignore_eos=True, **request), self._take)
        self.last: TurnOutput | None = None

    def _take(self, output: TurnOutput | Exception) -> None:
        self.times.append(time.perf_counter())
        if isinstance(output, Exception):
            self.error = output
        elif output.finish_reason:
            self.last = output

    def wait(self) -> Outputs:
        while self.last is None:
            if self.error is not None:
                raise self.error
            time.sleep(0.0005)
        return self

    @property
    def ttft(self) -> float:
        return self.times[0] - self.submitted_at

    @property
    def last_gap(self) -> float:
        """Seconds between the last two outputs."""
        return self.times[-1] - self.times[-2]


def judged(
    what: str, seconds: dict[str, list[float]], bound: str, ms: float = math.inf, times: float = math.inf
) -> dict[str, Any]:
    """A `row`, and whether its bounds are met: at most ``ms`` more, and at most ``times`` as long.

    Where the case differs from itself by more than 1 %, the row does not count: it is neither met nor missed.
    """
    made = row(what, seconds, bound)
    counts = made["A/A (%)"] <= MAX_DIFFERENCE
    met = made["difference (ms)"] <= ms and made["ratio"] <= times
    return {**made, "counts": counts, "met": met if counts else None}


def commits(llm: LLM, prompt: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """What a commit adds to the last response of a turn, and to the tokens of an answer that runs next to it."""

    def turn(**session: Any) -> Outputs:
        return Outputs(llm, input_ids=prompt[:16], max_tokens=4, **session).wait()

    kept = {"session_key": "kept", "session_start": True}
    last = in_turn(
        rounds,
        {
            "a turn that is not kept": lambda: turn().last_gap,
            "again": lambda: turn().last_gap,
            "one that is": lambda: turn(**kept).last_gap,
        },
    )
    stream = Outputs(llm, input_ids=prompt[:16], max_tokens=1 << 20)

    def itl(**session: Any) -> float:
        start = len(stream.times)
        for _ in range(4):
            turn(**session)
        return statistics.median(b - a for a, b in pairwise(stream.times[start:]))

    itl()
    beside = in_turn(
        ITL_ROUNDS * rounds,
        {
            "ITL next to turns that are not kept": itl,
            "again": itl,
            "next to turns that are": lambda: itl(**kept),
        },
    )
    stream.turn.cancel()
    stream.wait()
    return [
        judged("a turn's last response", last, "at most 2 ms more", ms=2.0),
        judged("others' inter-token time", beside, "at most 1.02 times", times=1.02),
    ]


def read_check_copy(path: Path) -> float:
    """Seconds that reading a file, its SHA-256 and a copy of it take."""
    started = time.perf_counter()
    contents = path.read_bytes()
    hashlib.sha256(contents).digest()
    bytearray(contents)
    return time.perf_counter() - started


def resuming(engine: Path, folder: Path, prompt: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """What it takes to continue a long session from a snapshot, from the log, and from another session's lane.

    A fork is compared with the next turn of a session that fills its window too: it attends to as many tokens. Such a
    turn's time is not part of a resumption's either.
    """
    store, snapshots = str(folder / "long.db"), folder / "snapshots"
    with trtstream.load(engine, session_store=store, snapshot_dir=snapshots) as llm:
        Outputs(llm, input_ids=prompt, max_tokens=2, session_key="long").wait()
        known = Outputs(llm, input_ids=prompt[:16], max_tokens=2, session_key="long").wait().last
        assert known is not None
        # Ended at once: a fork that is kept takes another session's lane sooner or later, as any session does.
        forking = {
            "parent_turn": known.turn_id,
            "input_ids": prompt[:1],
            "max_tokens": 2,
            "session_key": "fork",
            "session_end": True,
        }
        plain = {"input_ids": prompt[:2], "max_tokens": 2}
        window = llm.engine.build.sink_token_length + llm.engine.build.ring
        Outputs(llm, input_ids=prompt[:window], max_tokens=2, session_key="other").wait()
        going_on = {"session_key": "other", "input_ids": prompt[:1], "max_tokens": 2}
        fork = in_turn(
            FORK_ROUNDS * rounds,
            {
                "a turn of two tokens in its lane": lambda: Outputs(llm, **going_on).wait().ttft,
                "again": lambda: Outputs(llm, **going_on).wait().ttft,
                "a fork of a session in a lane": lambda: Outputs(llm, **forking).wait().ttft,
            },
        )
        cache = llm.engine.backend.session_cache(0)
        copy = cache.clone()

        def copy_seconds() -> float:
            Outputs(llm, **going_on).wait()  # takes the cache out of the CPU's own, as what comes before a fork does
            started = time.perf_counter()
            copy.copy_(cache)
            return time.perf_counter() - started

        copied = statistics.median(copy_seconds() for _ in range(rounds)) * 1e3
    (file,) = snapshots.glob(f"*-{known.turn_id}.snapshot")
    with trtstream.load(engine, session_store=store, snapshot_dir=snapshots) as llm:
        Outputs(llm, **going_on).wait()  # so that it has a lane
        resumed = in_turn(
            rounds,
            {
                "reading, checking and copying the file": lambda: read_check_copy(file),
                "again": lambda: read_check_copy(file),
                "resuming from it": lambda: Outputs(llm, **forking).wait().ttft - Outputs(llm, **going_on).wait().ttft,
            },
        )
        Outputs(llm, input_ids=prompt[:1], max_tokens=2, session_key="long").wait()
        regenerating = {**forking, "session_key": "long", "session_rewind": True, "session_end": False}
        Outputs(llm, **going_on).wait()  # so that it has a lane
        regenerated = in_turn(
            rounds,
            {
                "a turn of two tokens in its lane": lambda: Outputs(llm, **going_on).wait().ttft,
                "again": lambda: Outputs(llm, **going_on).wait().ttft,
                "another answer in a lane": lambda: Outputs(llm, **regenerating).wait().ttft,
            },
        )
    with trtstream.load(engine, session_store=store) as llm:
        field = llm.engine.receptive_field
        Outputs(llm, **plain).wait()
        seen = prompt[: field + llm.engine.build.sink_token_length]
        whole = {"input_ids": seen, "max_tokens": 2}
        rebuilt = in_turn(
            1,
            {
                f"a prompt of {len(seen):,} tokens": lambda: Outputs(llm, **whole).wait().ttft,
                "again": lambda: Outputs(llm, **whole).wait().ttft,
                "resuming from the log": lambda: Outputs(llm, **forking).wait().ttft,
            },
        )
    megabytes = file.stat().st_size / 1e6
    return [
        judged("a fork", fork, f"one copy ({copied:.2f} ms) more", ms=copied),
        row("another answer to the last question", regenerated, ""),
        judged(f"{len(prompt):,} tokens, a snapshot of {megabytes:.1f} MB", resumed, "at most 1.5 times", times=1.5),
        row(f"{len(prompt):,} tokens, from the log", rebuilt, ""),
    ]


def starts(engine: Path, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """What stored sessions add to a start."""
    empty, full = folder / "empty.db", folder / "full.db"
    fill(TurnLog(str(full)), bytes.fromhex(read_engine(engine).fingerprint))

    def start(store: Path) -> float:
        started = time.perf_counter()
        with trtstream.load(engine, session_store=str(store)) as llm:
            Outputs(llm, input_ids=(1, 2), max_tokens=2).wait()
            return time.perf_counter() - started

    start(empty)
    seconds = in_turn(
        rounds,
        {
            "a start with no stored sessions": lambda: start(empty),
            "again": lambda: start(empty),
            f"with {STORED_SESSIONS:,}": lambda: start(full),
        },
    )
    return [judged("a start, up to a first answer", seconds, "at most 1 s more", ms=1000.0)]


def fill(log: TurnLog, fingerprint: bytes) -> None:
    """Store many sessions of one turn."""
    for first in range(0, STORED_SESSIONS, 100):
        batch = []
        for number in range(first, first + 100):
            turn_id = new_turn_id()
            turn = TurnRecord(
                id=turn_id,
                parent=None,
                root=turn_id,
                fingerprint=fingerprint,
                sink_token_length=4,
                start=0,
                tokens=token_array([5] * 100),
                pending=5,
                num_input_tokens=50,
                num_output_tokens=51,
                system=None,
                prompt="Hello " * 20,
                text="Hello " * 20,
                finish_reason="stop",
                request_id="",
                request_hash=bytes(32),
                created=time.time(),
            )
            batch.append(Commit(turn, f"session {number}", None))
        assert log.commit(batch) == [None] * 100
    log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000, help="of the session that is resumed")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--starts", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    config = read_engine(arguments.engine)
    generator = torch.Generator().manual_seed(0)
    prompt = tuple(
        torch.randint(config.pretrained_config.vocab_size, (arguments.tokens,), generator=generator).tolist()
    )
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with trtstream.load(arguments.engine, session_store=str(folder / "sessions.db")) as llm:
            rows = commits(llm, prompt, arguments.rounds)
        rows += starts(arguments.engine, folder, arguments.starts)
        rows += resuming(arguments.engine, folder, prompt, arguments.rounds)
    print(table(rows))
    result = {
        "machine": machine(),
        "load_before": load_before,
        "dtype": config.build_config.dtype,
        "max_attention_window": config.build_config.max_attention_window,
        "rounds": arguments.rounds,
        "starts": arguments.starts,
        "rows": rows,
    }
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
