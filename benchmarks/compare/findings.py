"""A row for each contestant, with its ratios to this engine and to its floor; and who wins, in words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.compare.measure import Record
from benchmarks.timing import summary

Row = dict[str, Any]


def bandwidth(memory: Record) -> float:
    """Bytes per second that the contestant ``memory`` read."""
    return _step_bytes(memory) / statistics.median(_step_ms(memory)) * 1e3


def rows(records: Sequence[Record], bytes_per_s: float, window: int) -> list[Row]:
    """A row for each contestant; all are compared with the first. Names have the units; ``to_`` begins a ratio."""
    return [_row(record, records[0], bytes_per_s, window) for record in records]


def _row(record: Record, ours: Record, bytes_per_s: float, window: int) -> Row:
    row: Row = {"name": record.entry.name, "sessions": record.entry.sessions}
    if record.failure is not None:
        return row | {"note": record.failure}
    steps = summary(_step_ms(record))
    floor = _step_bytes(record) / bytes_per_s * 1e3
    below = {position for position in record.log_probs if position <= window}
    return row | {
        "decode_ms": steps["ms"],
        "decode_ms_p10": steps["ms_p10"],
        "decode_ms_p90": steps["ms_p90"],
        "decode_steps": len(_step_ms(record)),
        "to_ours": steps["ms"] / statistics.median(_step_ms(ours)),
        "floor_ms": floor,
        "to_floor": steps["ms"] / floor,
        "prefill_tokens_per_s": _tokens_per_s(record, "prefill"),
        "evaluation_tokens_per_s": _tokens_per_s(record, "evaluate"),
        "below_window": _agreement(record, ours, below),
        "past_window": _agreement(record, ours, set(record.log_probs) - below),
        "note": record.note,
    }


def _agreement(record: Record, ours: Record, positions: Iterable[int]) -> Row:
    """Mean and largest difference (nats) from our log-probabilities of the same tokens, at the common positions."""
    mine, others = ours.log_probs, record.log_probs
    differences = [others[position] - mine[position] for position in positions if position in mine]
    return {
        "tokens": len(differences),
        "mean_difference": statistics.fmean(differences) if differences else None,
        "largest_difference": max(map(abs, differences)) if differences else None,
    }


def chunked_evaluation(found: Sequence[Row], ours: Record) -> Row | None:
    """Our evaluation in chunks against the paper's method, which evaluates token by token, on the same text."""
    mine = found[0]
    theirs = next((row for row in found[1:] if row.get("evaluation_tokens_per_s") and "rotation" in row["name"]), None)
    if theirs is None:
        return None
    sigma = statistics.fmean(turn.logits_std for turn in ours.turns["decode"])
    largest = theirs["past_window"]["largest_difference"]
    return {
        "ours_tokens_per_s": mine["evaluation_tokens_per_s"],
        "rotation_tokens_per_s": theirs["evaluation_tokens_per_s"],
        "times_as_fast": mine["evaluation_tokens_per_s"] / theirs["evaluation_tokens_per_s"],
        "tokens_compared": theirs["past_window"]["tokens"],
        "largest_difference": largest,
        "logits_std": sigma,
        "largest_difference_in_std": largest / sigma,
    }


DECODING = "{peer} wins in decoding: {theirs:.1f} ms a step against {ours:.1f} ms of {name}, {ratio:.2f} times as fast."
PREFILL = "{peer} wins in prefill: {theirs:,.0f} tokens/s against {ours:,.0f} of {name}, {ratio:.2f} times as fast."


def verdicts(found: Sequence[Row], num_ours: int) -> list[str]:
    """Each win of a peer over this engine's fastest format, in words. The first ``num_ours`` rows are this engine's.

    Peers are compared with as many sessions as they have.
    """
    lines = []
    for count in sorted({row["sessions"] for row in found}):
        ours = [row for row in found[:num_ours] if row["sessions"] == count]
        peers = [row for row in found[num_ours:] if row["sessions"] == count]
        lines += _wins(ours, peers, "decode_ms", DECODING, lambda ms: 1 / ms)
        if count == 1:
            lines += _wins(ours, peers, "prefill_tokens_per_s", PREFILL, lambda tokens_per_s: tokens_per_s)
    best = min(found[:num_ours], key=lambda row: row["decode_ms"])
    return lines or [f"No peer that was measured decodes or prefills faster than {best['name']}."]


def _wins(
    mine: Sequence[Row], others: Sequence[Row], key: str, text: str, speed: Callable[[float], float]
) -> list[str]:
    ours = max(mine, key=lambda row: speed(row[key]))
    peers = sorted((row for row in others if row.get(key)), key=lambda row: -speed(row[key]))
    ratios = [speed(peer[key]) / speed(ours[key]) for peer in peers]
    return [
        text.format(peer=peer["name"], theirs=peer[key], ours=ours[key], name=ours["name"], ratio=ratio)
        for peer, ratio in zip(peers, ratios, strict=True)
        if ratio > 1
    ]


def cells(row: Row, ours: Row) -> dict[str, str]:
    """A row as text, by the columns of a table. ``ours`` is the first, which all are compared with."""
    if "decode_ms" not in row:
        return {"contestant": row["name"], "": row["note"]}
    loss = row["past_window"]["mean_difference"]
    prefill = row["prefill_tokens_per_s"] or row["evaluation_tokens_per_s"]
    return {
        "contestant": row["name"],
        "decode ms (p10 to p90)": f"{row['decode_ms']:.1f} ({row['decode_ms_p10']:.1f} to {row['decode_ms_p90']:.1f})",
        "tokens/s": f"{row.get('sessions', 1) / row['decode_ms'] * 1e3:,.0f}",
        f"to {ours['name']}": f"{row['to_ours']:.2f}",
        "floor ms": f"{row['floor_ms']:.1f}",
        "to floor": f"{row['to_floor']:.2f}",
        "prefill tokens/s": f"{prefill:,.0f}" if prefill else "",
        "loss to ours, nats": "" if loss is None else f"{0.0 - loss:+.4f}",
        "": row["note"],
    }


def evaluation_line(values: Row) -> str:
    return (
        f"Chunked evaluation: {values['ours_tokens_per_s']:,.0f} tokens/s against "
        f"{values['rotation_tokens_per_s']:,.0f} of whole-cache rotation, {values['times_as_fast']:.1f} times as fast; "
        f"over {values['tokens_compared']:,} tokens past the window the largest difference of a token's "
        f"log-probability is {values['largest_difference']:.1e} nats, {values['largest_difference_in_std']:.1e} "
        "of the logits' standard deviation."
    )


def _step_ms(record: Record) -> list[float]:
    return [each for turn in record.turns["decode"] for each in turn.milliseconds]


def _step_bytes(record: Record) -> float:
    """Mean over the steps: llama.cpp's see different numbers of tokens."""
    return statistics.fmean(each for turn in record.turns["decode"] for each in turn.bytes_read)


def _tokens_per_s(record: Record, part: str) -> float | None:
    turns = record.turns.get(part)
    return turns[0].tokens / statistics.median(turn.milliseconds[0] for turn in turns) * 1e3 if turns else None
