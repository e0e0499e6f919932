"""How deep a JSON text is nested and how many members it has, against the value that it was made of."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from trtstream.deploy.http_front.json_shape import JsonShape


def shape(text: bytes, *cuts: int) -> tuple[int, int]:
    """Depth and members of a text that arrives in pieces."""
    found = JsonShape()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found.feed(text[start:end])
    return found.depth, found.members


def value(choose: random.Random, depth: int) -> Any:
    """A random JSON value, nested ``depth`` deep at most."""
    kind = choose.choice(["text", "number", "list", "object"]) if depth else choose.choice(["text", "number"])
    if kind == "number":
        return choose.choice([None, True, 3, -2.5e9])
    if kind == "text":
        return "".join(choose.choices('[]{}"\\a\n\u2028😀', k=choose.randrange(12)))
    inner = [value(choose, depth - 1) for _ in range(choose.randrange(4))]
    return inner if kind == "list" else {f'[{{"\\{i}': one for i, one in enumerate(inner)}


def depth_of(parsed: Any) -> int:
    if isinstance(parsed, dict):
        parsed = list(parsed.values())
    return 1 + max(map(depth_of, parsed), default=0) if isinstance(parsed, list) else 0


def members_of(parsed: Any) -> int:
    own = len(parsed) if isinstance(parsed, dict) else 0
    parsed = list(parsed.values()) if isinstance(parsed, dict) else parsed
    return own + (sum(map(members_of, parsed)) if isinstance(parsed, list) else 0)


@pytest.mark.parametrize("seed", range(200))
def test_the_depth_is_that_of_the_parsed_value(seed: int) -> None:
    choose = random.Random(seed)
    parsed = value(choose, 8)
    text = json.dumps(parsed, ensure_ascii=choose.random() < 0.5, indent=choose.choice([None, 2]))
    data = text.encode()
    cuts = sorted(choose.randrange(len(data) + 1) for _ in range(choose.randrange(5)))
    assert shape(data) == shape(data, *cuts) == (depth_of(parsed), members_of(parsed))


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        (b"", 0), (b"]]]", 0), (b"[" * 10_000_000, 10_000_000), (b"[]" * 4_000_000, 1), (b'{"a":' * 100_000, 100_000),
        (b'"' + b"[" * 100, 0), (b'"\\"[[["[', 1), (b'"' + b'\\"' * 4_000_000, 0), (b'"' + b"\\" * 65_537 + b'"[', 0),
        (b'"' + b"\\" * 65_536 + b'"[', 1), (b'"' + b"\\u0041" * 1_000_000 + b'"', 0), (b"\xff\x00[", 1),
    ],
)  # fmt: skip
def test_texts_that_are_not_json(text: bytes, depth: int) -> None:
    assert shape(text)[0] == depth
