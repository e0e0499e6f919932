"""What does recall cost where nothing needs recalling, and how long does a search take?

Text and a chat are read twice in turn, by a session with recall and by one without: perplexity, and how much was read
again. Then searches in an index of a million tokens, the time of generated tokens in pairs, next to a repetition (A/A),
and resident memory. Needs an engine with two sessions or more and a chat template. Writes JSON and prints a table:

    python -m benchmarks.recall_costs ENGINE --text KING_JAMES --json benchmarks/results/recall_costs.json
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import trtstream
from benchmarks import write_json
from benchmarks.markdown import table
from benchmarks.paired import in_turn, row
from benchmarks.session_costs import Outputs
from trtstream.engine_dir import TOKENIZER
from trtstream.evaluation.facts import make_facts
from trtstream.evaluation.recall import greedy
from trtstream.evaluation.tokens import TokenFile, temporary_tokens
from trtstream.evaluation.with_recall import Recaller
from trtstream.machine import machine, resident_memory
from trtstream.runtime.encoding import text_of
from trtstream.runtime.llm import LLM
from trtstream.runtime.loading import load_engine
from trtstream.runtime.prompt import LaterPrompt, first_prompt, next_prompt
from trtstream.runtime.recalling import Block
from trtstream.runtime.requests import TurnRequest
from trtstream.runtime.streaming_engine import StreamingEngine
from trtstream.runtime.tokenizer import load_tokenizer
from trtstream.sessions.records import Recalled

TURN = 256  # tokens of text that are read as one turn
ANSWER = 48  # tokens
RECALL = 128
FACTS = 128
CHAT = (
    "Give me three ideas for a quick dinner.", "How do I get a coffee stain out of a shirt?",
    "Write two lines about the sea.", "What is a prime number?", "Which tools do I need to hang up a picture?",
    "Name some animals that sleep in winter.", "Why is the sky blue?", "How long should I boil an egg?",
    "Explain what a mortgage is.", "What could I give a friend who likes gardens?", "How does a bicycle stay upright?",
    "Tell me a short story about a lighthouse.", "What does a conductor do in an orchestra?",
    "How can I fall asleep sooner?", "What makes bread rise?", "Suggest a name for a bakery.",
    "How are mountains made?", "What should I pack for a week in the snow?", "Who was Ada Lovelace?",
    "How do I write a polite refusal?", "What is the difference between a frog and a toad?",
    "Give me a warm-up for runners.", "Why do leaves turn red?", "How do magnets work?",
)  # fmt: skip


class Session:
    """A lane of ``engine`` that reads turns, each behind what recall finds for it: at most ``recall`` tokens."""

    def __init__(self, engine: StreamingEngine, lane: int, tokenizer: Any, recall: int) -> None:
        self.read_again: list[int] = []  # tokens, in each turn
        self.losses: list[float] = []
        self.last = 0
        self._engine, self._lane, self._tokenizer, self._recall = engine, lane, tokenizer, recall
        self._recaller = Recaller(engine, tokenizer)
        self._before = ""
        engine.reset(lane)

    def block(self, text: str) -> Block | None:
        """What a turn of this text reads again."""
        if not self._recall:
            return None
        block = self._recaller.block(text, self._engine.position(self._lane), self._recall, self._before)
        self._before = text
        return block

    def read(self, prompt: LaterPrompt, block: Block | None, scored: int) -> None:
        """Feed a turn; its last ``scored`` tokens count."""
        first = self._engine.position(self._lane)
        log_probs = self._engine.score(self._lane, prompt.token_ids)[-scored:]
        self.losses += [-loss for loss in log_probs.tolist() if not math.isnan(loss)]
        recalled = None
        if block is not None:
            begin = first + prompt.recalled.start
            spans = tuple((found.turn, found.span.first, found.span.end) for found in block.found)
            recalled = Recalled(begin, begin + len(prompt.recalled), spans)
        self.read_again.append(len(prompt.recalled))
        if self._recall:
            self._recaller.index.add(first.to_bytes(16, "big"), first, prompt.token_ids, recalled)
        self.last = prompt.token_ids[-1]

    def answer(self, prompt: LaterPrompt) -> list[int]:
        """What the model says greedily; the session stays as it is."""
        return greedy(self._engine, prompt.token_ids, ANSWER, self._lane, self._engine.model.eos_token_ids)


def read_text(sessions: Sequence[Session], tokenizer: Any, tokens: TokenFile, count: int) -> None:
    """All sessions read ``count`` tokens of text, a turn each in turn."""
    for begin in range(0, count, TURN):
        ids = tokens.read(begin, min(begin + TURN, count)).tolist()
        for session in sessions:
            block = session.block(tokenizer.decode(ids))
            again = [] if block is None else block.ids(tokenizer, text_of(tokenizer, session.last))
            session.read(LaterPrompt(again + ids, range(len(again))), block, len(ids))


def chat(sessions: Sequence[Session], tokenizer: Any, engine: StreamingEngine) -> None:
    """All sessions are asked the same and read the last one's answers, which alone count."""
    for number, text in enumerate(CHAT):
        request = TurnRequest(text=text, chat=True)
        prompts, blocks = [], [session.block(text) for session in sessions]
        for session, block in zip(sessions, blocks, strict=True):
            if number:
                prompts.append(next_prompt(request, tokenizer, session.last, block))
            else:
                prompts.append(LaterPrompt(first_prompt(request, tokenizer, engine.build).token_ids))
        answer = sessions[-1].answer(prompts[-1])
        for session, block, prompt in zip(sessions, blocks, prompts, strict=True):
            session.read(LaterPrompt(prompt.token_ids + answer, prompt.recalled), block, len(answer))


def perplexities(engine: StreamingEngine, tokenizer: Any, tokens: TokenFile, count: int) -> list[dict[str, Any]]:
    rows = []
    for name in ("text", "chat"):
        sessions = [Session(engine, lane, tokenizer, recall) for lane, recall in enumerate((RECALL, 0))]
        if name == "text":
            read_text(sessions, tokenizer, tokens, count)
        else:
            chat(sessions, tokenizer, engine)
        on, off = (math.exp(statistics.fmean(session.losses)) for session in sessions)
        rows.append(
            {
                "what": f"perplexity of a {name}, {len(sessions[1].losses):,} tokens",
                "without": off,
                "with recall": on,
                "more (%)": 100 * (on / off - 1),
                "turns": len(sessions[0].read_again),
                "turns that read again": sum(map(bool, sessions[0].read_again)),
                "most tokens": max(sessions[0].read_again),
                "bound": f"at most 1 % more, and {RECALL} tokens",
            }
        )
    return rows


def searches(engine: StreamingEngine, tokenizer: Any, tokens: TokenFile, count: int) -> dict[str, Any]:
    """Milliseconds of searches in ``count`` tokens of text, which is repeated where it is shorter, and what they take.

    The questions are facts' in both wordings, of which the first are in the text, and passages of the text itself.
    """
    recaller = Recaller(engine, tokenizer)
    facts = make_facts(FACTS, tokenizer)
    before, started, position = resident_memory(), time.perf_counter(), 0
    while position < count:
        begin = position % tokens.count
        ids = tokens.read(begin, min(begin + (1 << 13), tokens.count)).tolist()[: count - position]
        ids += [token for fact in facts for token in fact.planted] if position == 0 else []
        recaller.index.add(position.to_bytes(16, "big"), position, ids)
        position += len(ids)
    seconds = time.perf_counter() - started
    passages = np.linspace(0, tokens.count - TURN, FACTS).astype(int).tolist()
    asked = [each for fact in facts for each in (fact.question, fact.paraphrase)]
    asked += [tokens.read(begin, begin + TURN).tolist() for begin in passages]
    times, found = [], 0
    for ids in asked:
        started = time.perf_counter()
        found += recaller.block(tokenizer.decode(ids), position, RECALL) is not None
        times.append((time.perf_counter() - started) * 1e3)
    used = resident_memory() - before
    recaller.index.close()
    return {
        "what": f"a search in {position:,} tokens",
        "searches": len(times),
        "median (ms)": statistics.median(times),
        "p99 (ms)": float(np.percentile(times, 99)),
        "found": found,
        "first index (s)": seconds,
        "its memory (MB)": used / 1e6,
        "bound": "median below 5 ms",
    }


def generated(llm: LLM, text: str, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The time of a generated token, and resident memory, with recall and without: forks of one long conversation."""
    fact = "The brave otter lives in Rome. "
    last = Outputs(llm, text=fact + text, max_tokens=2, session_key="long").wait().last
    assert last is not None
    read_again = 0

    def itl(recall: int) -> float:
        nonlocal read_again
        asking = {"text": "\nWhere does the brave otter live?", "parent_turn": last.turn_id, "recall": recall}
        outputs = Outputs(llm, max_tokens=ANSWER, **asking).wait()
        assert outputs.last is not None
        read_again += len(outputs.last.recalled)
        return statistics.median(later - sooner for sooner, later in pairwise(outputs.times))

    itl(0)
    before = resident_memory()
    cases = {"a token without recall": lambda: itl(0), "again": lambda: itl(0), "with it": lambda: itl(RECALL)}
    times = row("a generated token", in_turn(rounds, cases), "at most 1.02 times")
    assert read_again, "the question reads the fact again"
    after = resident_memory()
    memory = {
        "what": "resident memory (MB)",
        "without": before / 1e6,
        "with recall": after / 1e6,
        "more (%)": 100 * (after / before - 1),
        "bound": "at most 2 % more",
    }
    return times, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16_384, help="of the text whose perplexity is measured")
    parser.add_argument("--indexed", type=int, default=1_000_000, help="tokens in which is searched")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    load_before = os.getloadavg()[0]
    tokenizer = load_tokenizer(arguments.engine / TOKENIZER)
    engine = load_engine(arguments.engine)
    most = max(arguments.tokens, arguments.indexed)
    with temporary_tokens(arguments.text, tokenizer, engine.model.vocab_size, most) as tokens:  # type: ignore[arg-type]
        rows = perplexities(engine, tokenizer, tokens, min(arguments.tokens, tokens.count))
        search = searches(engine, tokenizer, tokens, arguments.indexed)
        passage = tokens.read(0, min(3 * engine.build.max_attention_window, tokens.count)).tolist()
    build = engine.build
    del engine
    with (
        tempfile.TemporaryDirectory() as folder,
        trtstream.load(arguments.engine, session_store=str(Path(folder) / "sessions.db")) as llm,
    ):
        times, memory = generated(llm, llm.tokenizer.decode(passage), arguments.rounds)  # type: ignore[union-attr]
    for part in (rows, [search], [times], [memory]):
        print(table(part), end="\n\n")
    result = {
        "machine": machine(),
        "load_before": load_before,
        "text": arguments.text.name,
        "dtype": build.dtype,
        "max_attention_window": build.max_attention_window,
        "recall_tokens": RECALL,
        "perplexity": rows,
        "search": search,
        "generated": times,
        "memory": memory,
    }
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
