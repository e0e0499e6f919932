"""Random edits of JSON: of its values, by wrong types and numbers, and of its text."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

Container = dict[str, Any] | list[Any]

NUMBERS = (0, 1, -1, 2, 3, 0.5, -0.0, 1e308, 2**31 - 1, 2**31, 2**63, -(2**63), 10**400)
TEXTS = ("", "0", "x", "é\ud800", "a\nb", "\0", "none", "float32", "../..", "/dev/zero", "x" * 10_000)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    *TEXTS,
    *(None, True, False, [], [None], [[[]]], [2**40], {}, {"x": {}}, {"": 0}),
)


def edit_values(random: Random, values: Any) -> str:
    """Change one place in ``values``, an object or a list, and say which."""
    places = list(_places(values))
    holder, key = random.choice(places)
    change: Callable[[Random, Any, Any], str] = random.choice((_replace, _replace, _remove, _add, _nudge, _swap))
    return f"{change.__name__[1:]} {str(key)[:40]}: {change(random, holder, key)[:80]}"


def _places(values: Container) -> list[tuple[Container, Any]]:
    places: list[tuple[Container, Any]] = []
    for key, inner in values.items() if isinstance(values, dict) else enumerate(values):
        places.append((values, key))
        if isinstance(inner, dict | list):
            places += _places(inner)
    return places


def _replace(random: Random, holder: Any, key: Any) -> str:
    holder[key] = random.choice(VALUES)
    return ascii(holder[key])[:60] if not isinstance(holder[key], int) else "a number"


def _remove(_random: Random, holder: Any, key: Any) -> str:
    del holder[key]
    return ""


def _add(random: Random, holder: Any, key: Any) -> str:
    value = random.choice(VALUES)
    if isinstance(holder, list):
        holder.insert(key, value)
    else:
        holder[f"{key}_"] = value
    return ""


def _nudge(random: Random, holder: Any, key: Any) -> str:
    """A number's neighbours and multiples, or another thing as a text of it."""
    value = holder[key]
    if isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, int | float):
        holder[key] = random.choice((value + 1, value - 1, value * 2, value / 2, -value, float(value), str(value)))
    else:
        holder[key] = json.dumps(value)
    return ascii(holder[key])


def _swap(random: Random, holder: Any, key: Any) -> str:
    other = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    holder[key], holder[other] = holder[other], holder[key]
    return f"with {other}"


def edit_text(random: Random, text: bytes) -> bytes:
    """``text`` cut, with flipped bits, with the same key twice, nested too deep, or with numbers that JSON lacks."""
    at = random.randrange(len(text) + 1)
    kind = random.randrange(7)
    if kind == 0:
        return text[:at]
    if kind == 1:
        damaged = bytearray(text)
        for _ in range(random.randint(1, 4)):
            damaged[random.randrange(len(text))] ^= 1 << random.randrange(8)
        return bytes(damaged)
    if kind == 2:
        return text[:at] + random.randbytes(random.randint(1, 20)) + text[at:]
    if kind == 3:
        return text.replace(b"{", b'{"version": 1, "version": 4, ', 1)
    if kind == 4:
        depth = random.choice((500, 990, 100_000))
        return text.replace(b"{", b'{"deep": ' + b"[" * depth + b"]" * depth + b", ", 1)
    number = random.choice((b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"-0", b"1E400"))
    if kind == 5:
        return text.replace(b"1", number, 1)
    return b'{"version": ' + number + text[1:]
