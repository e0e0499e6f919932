"""Dataclasses from parsed JSON, checked by their type hints: ``Annotated`` ones give a field's range or its choices."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from trtstream.errors import TrtstreamError

T = TypeVar("T")
_SHORT = reprlib.Repr()
_SHORT.maxstring = 100


@dataclass(frozen=True)
class Range:
    """A number of at least ``least`` and at most ``most``."""

    least: float
    most: float = 2**31 - 1

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Choice:
    """One of ``values``."""

    values: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return f"that is one of {', '.join(self.values)}"


class _Mismatch(Exception):
    """Its argument is what a value must be."""


def from_json(cls: type[T], values: object, where: str) -> T:
    """A ``cls`` of a JSON object; an error names the field and begins with ``where``.

    Raises TrtstreamError for unknown, missing and mistyped fields, and for numbers out of range or not finite.
    """
    if not isinstance(values, dict):
        raise TrtstreamError(f"{where} is {shown(values)}; it must be an object")
    known = {field.name: field for field in fields(cast(Any, cls))}
    for name in values:
        if name not in known:
            raise TrtstreamError(f"{where} has the unknown {cls.__name__} field {shown(name)}")
    hints = get_type_hints(cls, include_extras=True)
    read = {}
    for name, field in known.items():
        if name in values:
            read[name] = checked(hints[name], values[name], f"{where}, {name}")
        elif field.default is MISSING:
            raise TrtstreamError(f"{where} lacks {name}")
    return cls(**read)


def shown(value: object) -> str:
    """A value in a message, short whatever it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a huge number"


def checked(hint: Any, value: object, where: str) -> Any:
    """``value`` as ``hint`` wants it. Raises TrtstreamError, which begins with ``where``, if it does not fit."""
    if is_dataclass(hint):
        return from_json(cast(type, hint), value, where)
    try:
        return _plain(hint, value, where)
    except _Mismatch as error:
        raise TrtstreamError(f"{where} is {shown(value)}; it must be {error}") from None


def _plain(hint: Any, value: object, where: str) -> Any:
    """``value`` as ``hint`` wants it. Raises _Mismatch, or TrtstreamError for a part of it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, limits = arguments
        if not _CHECKS[kind](value) or value not in limits:
            raise _Mismatch(f"{_NAMES[kind]} {limits}")
        return _plain(kind, value, where)
    if origin in (Union, UnionType):
        return _one_of(arguments, value, where)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise _Mismatch("a list")
        return origin(checked(arguments[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise _Mismatch("an object")
        return {
            checked(str, key, where): checked(arguments[1], item, f"{where}, {shown(key)}")
            for key, item in value.items()
        }
    if not _CHECKS[hint](value):
        raise _Mismatch(_NAMES[hint])
    return float(cast(float, value)) if hint is float else value


def _one_of(hints: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and NoneType in hints:
        return None
    others = [hint for hint in hints if hint is not NoneType]
    for hint in others[:-1]:
        try:
            return _plain(hint, value, where)
        except _Mismatch:
            pass
    return checked(others[-1], value, where)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 1e300 and math.isfinite(value)


_CHECKS: dict[Any, Callable[[object], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: _is_number,
    str: lambda value: isinstance(value, str) and value.isprintable(),
}
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a printable string",
}
