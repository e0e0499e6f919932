"""Where the cache of a session comes from that is not in this process's memory: a snapshot, or the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from trtstream.runtime.session_state import SessionState
from trtstream.runtime.snapshots import Snapshots
from trtstream.runtime.tier_costs import TierCosts
from trtstream.sessions.records import TurnRecord
from trtstream.sessions.turn_log import TurnLog

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A session's state, and the tokens to feed after it. Without ``kv_cache`` all of the state's are fed."""

    state: SessionState
    behind: list[int] = field(default_factory=list)


def restore(
    turn: TurnRecord, receptive_field: int, log: TurnLog, snapshots: Snapshots | None, costs: TierCosts
) -> Restored:
    """What an engine with this receptive field (tokens) needs to continue ``turn``, from where it is had soonest.

    Reads the database and files.
    """
    tokens = min(turn.position, turn.sink_token_length + receptive_field)
    from_log = costs.feeding(tokens)
    sizes = {} if snapshots is None else snapshots.sizes()
    while snapshots is not None and sizes:
        nearest = (turn.id, turn.position) if turn.id in sizes else log.nearest(turn.id, sizes)
        if nearest is None:
            break
        turn_id, position = nearest
        nbytes = sizes.pop(turn_id)
        behind = turn.position - position
        seconds = costs.reading(nbytes) + costs.feeding(behind)
        if seconds > from_log:
            break
        state = snapshots.load(turn_id)
        if state is not None:
            logger.info(
                "turn %s... continues from a snapshot: %.1f MB and %d tokens, about %.2f s (the log: %d, %.2f s)",
                turn.id.hex()[:8],
                nbytes / 1e6,
                behind,
                seconds,
                tokens,
                from_log,
            )
            return Restored(state, log.fed_ids(turn, position) if behind else [])
    logger.info("turn %s... continues from the log: %d tokens, about %.2f s", turn.id.hex()[:8], tokens, from_log)
    return Restored(SessionState(turn.sink_token_length, turn.position, log.recent_ids(turn, receptive_field)))
