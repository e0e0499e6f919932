"""Turns as tests make them up."""

from __future__ import annotations

import time
from random import Random
from typing import Any

from trtstream.sessions.records import Commit, SessionKey, TurnRecord, new_turn_id, token_array


def turn_after(parent: TurnRecord | None, random: Random, sinks: int = 4, **fields: Any) -> TurnRecord:
    """A turn of some random tokens that continues ``parent``."""
    turn_id = new_turn_id()
    tokens = [random.randrange(1 << 17) for _ in range(random.randrange(1, 12))]
    values: dict[str, Any] = {
        "id": turn_id,
        "parent": None if parent is None else parent.id,
        "root": turn_id if parent is None else parent.root,
        "fingerprint": bytes(32),
        "sink_token_length": sinks if parent is None else parent.sink_token_length,
        "start": 0 if parent is None else parent.position,
        "tokens": tokens,
        "pending": random.randrange(1 << 17),
        "num_input_tokens": 0,
        "num_output_tokens": random.randrange(1, len(tokens) + 1),
        "system": None,
        "prompt": f"Grüße {random.random()}",
        "text": f"answer\0 {random.random()} 🦙",
        "finish_reason": "stop",
        "request_id": "",
        "request_hash": bytes(32),
        "created": time.time(),
    }
    values.update(fields)
    return TurnRecord(**{**values, "tokens": token_array(values["tokens"])})


def commit_after(key: SessionKey | None, head: TurnRecord | None, turn: TurnRecord) -> Commit:
    """Let the session, which points to ``head``, point to ``turn``."""
    return Commit(turn, key, None if head is None else head.id)
