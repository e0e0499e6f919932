"""What the turns say: a row for each contestant, its ratios to this engine and to its floor, and who wins, in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.compare.measure import Plan, Record

Row = dict[str, Any]


def bandwidth(memory: Record) -> float:
    """Bytes per second that the contestant ``memory`` read."""
    return _step_bytes(memory) / statistics.median(_step_ms(memory)) * 1e3


def rows(records: Sequence[Record], bytes_per_s: float, plan: Plan) -> list[Row]:
    """Of all contestants; the first is what the others are compared with. Fields say their units; ``to_``: ratios."""
    return [_row(record, records[0], bytes_per_s, plan) for record in records]


def _row(record: Record, ours: Record, bytes_per_s: float, plan: Plan) -> Row:
    row: Row = {"name": record.entry.name}
    if record.failure is not None or record.entry.maker is None:
        return row | {"note": record.failure or record.entry.note}
    ordered = sorted(_step_ms(record))
    last = len(ordered) - 1
    ms, floor = statistics.median(ordered), _step_bytes(record) / bytes_per_s * 1e3
    below = {position for position in record.log_probs if position <= plan.window}
    return row | {
        "decode_ms": ms,
        "decode_ms_p10": ordered[math.floor(last * 0.1)],
        "decode_ms_p90": ordered[math.ceil(last * 0.9)],
        "decode_steps": len(ordered),
        "to_ours": ms / statistics.median(_step_ms(ours)),
        "floor_ms": floor,
        "to_floor": ms / floor,
        "prefill_tokens_per_s": _tokens_per_s(record, "prefill", plan),
        "evaluation_tokens_per_s": _tokens_per_s(record, "evaluate", plan),
        "below_window": agreement(record, ours, below),
        "past_window": agreement(record, ours, set(record.log_probs) - below),
        "note": record.entry.note,
    }


def agreement(record: Record, ours: Record, positions: Iterable[int]) -> Row:
    """How log-probabilities of the same tokens differ from ours: nats, mean and largest, over the common positions."""
    mine, others = ours.log_probs, record.log_probs
    differences = [others[position] - mine[position] for position in positions if position in mine]
    return {
        "tokens": len(differences),
        "mean_difference": statistics.fmean(differences) if differences else None,
        "largest_difference": max(map(abs, differences)) if differences else None,
    }


def chunked_evaluation(found: Sequence[Row], ours: Record) -> Row | None:
    """Our evaluation in chunks against the paper's method, which goes token by token, on the same text."""
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


def verdicts(found: Sequence[Row], is_ours: int) -> list[str]:
    """In words, where a peer is ahead of this engine's fastest format; the first ``is_ours`` rows are this engine's."""
    measured = [row for row in found[:is_ours] if "decode_ms" in row]
    peers = [row for row in found[is_ours:] if "decode_ms" in row]
    said = []
    best = min(measured, key=lambda row: row["decode_ms"])
    for peer in sorted(peers, key=lambda row: row["decode_ms"]):
        ms, ours = peer["decode_ms"], best["decode_ms"]
        if ms < ours:
            said.append(
                f"{peer['name']} wins in decoding: {ms:.1f} ms a token against {ours:.1f} ms of {best['name']}, "
                f"{ours / ms:.2f} times as fast."
            )
    fastest = max(measured, key=lambda row: row["prefill_tokens_per_s"])
    for peer in sorted(peers, key=lambda row: -(row["prefill_tokens_per_s"] or 0)):
        speed, ours = peer["prefill_tokens_per_s"] or 0, fastest["prefill_tokens_per_s"]
        if speed > ours:
            said.append(
                f"{peer['name']} wins in prefill, though below the window only: {speed:,.0f} tokens/s against "
                f"{ours:,.0f} of {fastest['name']}, {speed / ours:.2f} times as fast."
            )
    return said or [f"No peer that was measured decodes or prefills faster than {best['name']}."]


COLUMNS = (
    "contestant",
    "decode ms (p10 to p90)",
    "to trtstream float32",
    "floor ms",
    "to floor",
    "prefill tokens/s",
    "loss to ours, nats",
    "",
)


def cells(found: Iterable[Row]) -> list[tuple[str, ...]]:
    """The rows as text, in `COLUMNS`."""
    return [_cells(row) for row in found]


def _cells(row: Row) -> tuple[str, ...]:
    if "decode_ms" not in row:
        return row["name"], *[""] * (len(COLUMNS) - 2), row["note"]
    loss = row["past_window"]["mean_difference"]
    prefill = row["prefill_tokens_per_s"] or row["evaluation_tokens_per_s"]
    return (
        row["name"],
        f"{row['decode_ms']:.1f} ({row['decode_ms_p10']:.1f} to {row['decode_ms_p90']:.1f})",
        f"{row['to_ours']:.2f}",
        f"{row['floor_ms']:.1f}",
        f"{row['to_floor']:.2f}",
        f"{prefill:,.0f}" if prefill else "",
        "" if loss is None else f"{0.0 - loss:+.4f}",
        row["note"],
    )


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


def _tokens_per_s(record: Record, part: str, plan: Plan) -> float | None:
    turns = record.turns.get(part)
    return plan.tokens(part) / statistics.median(turn.milliseconds[0] for turn in turns) * 1e3 if turns else None
