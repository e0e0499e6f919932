"""The JSON file of the results: the device, and of each part its cases, their rows, its seconds and its state.

It appears atomically after every case. ``measuring`` are the labels of the case that runs now: where its process dies,
they say what is missing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trtstream.atomic_file import atomic_file

Row = dict[str, Any]
"""One measurement: flat, JSON's types, every figure's unit in its name (``ms``: median milliseconds)."""


class Results:
    def __init__(self, path: Path, device: str | None) -> None:
        """Read the file if there is one, of this device or of any. Raises SystemExit if it is another's."""
        self.path = path
        self.values: dict[str, Any] = {"device": device, "parts": {}}
        self.read()
        if device is not None and self.values.get("device") != device:
            raise SystemExit(f"{path} is of {self.values.get('device')} and this is {device}; choose another --json")

    def read(self) -> None:
        if self.path.exists():
            try:
                self.values = json.loads(self.path.read_text())
            except ValueError as error:
                raise SystemExit(f"{self.path} is not this script's ({error}); choose another --json") from None

    def part(self, name: str) -> dict[str, Any]:
        return self.values["parts"].get(name, {})

    def rows(self, name: str) -> list[Row]:
        return rows_of(self.part(name))

    def failures(self, name: str) -> int:
        """How many of the part's rows failed, and 1 more if its process did."""
        return sum(map(failed, self.rows(name))) + ("error" in self.part(name))

    def has(self, name: str, labels: Row) -> bool:
        """Whether the part has the case with these labels, failed or not."""
        return any(case["labels"] == labels for case in self.part(name).get("cases", []))

    def good_cases(self, name: str, sources: str) -> list[Row]:
        """The part's cases that are of these sources and without a failed row."""
        part = self.part(name)
        cases = part["cases"] if part.get("sources") == sources else []
        return [case for case in cases if not any(map(failed, case["rows"]))]

    def begin(self, name: str, sources: str) -> None:
        """Keep the good cases; the others are measured again."""
        old, kept = self.part(name), self.good_cases(name, sources)
        seconds = old["seconds"] if kept else 0.0
        self.values["parts"][name] = {"state": "unfinished", "sources": sources, "seconds": seconds, "cases": kept}
        self._write()

    def measuring(self, name: str, labels: Row) -> None:
        self.part(name)["measuring"] = labels
        self._write()

    def add(self, name: str, labels: Row, rows: list[Row], seconds: float) -> None:
        """Add the case that was being measured, and its rows without the labels."""
        part = self.part(name)
        part.pop("measuring", None)
        part["cases"].append({"labels": labels, "rows": rows})
        part["seconds"] = round(part["seconds"] + seconds, 1)
        self._write()

    def finish(self, name: str, **values: str) -> None:
        """Set the part's state, and the error of its process."""
        self.part(name).update(values)
        self._write()

    def _write(self) -> None:
        with atomic_file(self.path, 0o644) as work:
            work.write_text(json.dumps(self.values, indent=1) + "\n")


def rows_of(part: dict[str, Any]) -> list[Row]:
    """The rows of a part of the file, each with its labels."""
    return [case["labels"] | row for case in part.get("cases", []) for row in case["rows"]]


def failed(row: Row) -> bool:
    """Whether the row has no figures, or wrong ones."""
    return "error" in row or row.get("ok") is False
