"""Turns that a server bounds: how many wait, how many tokens and seconds one may take, and how long its text is."""

from __future__ import annotations

import pytest

from tests.runtime.clients import ENDLESS, Client, ask, started
from trtstream.errors import TrtstreamError
from trtstream.runtime.scheduler import Scheduler, SchedulerStats


def test_a_full_queue(schedule):
    scheduler = schedule(max_queue_size=1)
    running = [started(scheduler, text="a", **ENDLESS) for _ in range(3)]
    queued = Client(scheduler, text="b", max_tokens=1)
    with pytest.raises(TrtstreamError, match="the server is busy: 1 turns are waiting"):
        Client(scheduler, text="c", session_key="s")
    running[0].turn.cancel()
    queued.wait()
    ask(scheduler, text="c", session_key="s", max_tokens=1)  # the refused turn has released its session


def test_a_turn_that_asks_for_more_tokens_than_the_server_gives(schedule):
    scheduler = schedule(max_tokens_limit=20)
    message = r"max_tokens is 21; it must be an integer from 1 to 20 \(this server's --max-tokens-limit\)"
    with pytest.raises(TrtstreamError, match=message):
        Client(scheduler, text="a", max_tokens=21)
    # A request that leaves it out is not refused for the default.
    assert ask(scheduler, text="a", ignore_eos=True).last.num_output_tokens == 20


@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_a_turn_that_takes_longer_than_the_server_gives(schedule, timeout):
    scheduler = schedule(turn_timeout=0.2)
    with pytest.raises(TrtstreamError, match=r"did not end within the 0\.2 s that this server gives a turn"):
        ask(scheduler, text="a", timeout=timeout, **ENDLESS)
    with pytest.raises(TrtstreamError, match=r"did not end within its timeout of 0\.1 s"):
        ask(scheduler, text="a", timeout=0.1, **ENDLESS)


def test_a_long_text_holds_up_nobody_else(scheduler):
    """Its turn has the session from the first moment on, and a turn that came later is answered before it is read."""
    text = "long " * 200_000
    long = Client(scheduler, text=text, session_key="s", max_tokens=1)
    assert scheduler.stats() == SchedulerStats(running=0, queued=0, sessions=0)
    with pytest.raises(TrtstreamError, match="has a turn running"):
        Client(scheduler, text="a", session_key="s")
    ask(scheduler, text="short", max_tokens=2)
    assert not long.outputs
    long.turn.cancel()
    assert long.wait().last.finish_reason == "cancelled"
    ask(scheduler, text="a", session_key="s", max_tokens=1)


def test_a_long_text_that_cannot_be_served_fails_its_turn(engine):
    scheduler = Scheduler(engine, None)
    long = Client(scheduler, text="a" * 100_000, session_key="s")
    with pytest.raises(TrtstreamError, match="the engine has no tokenizer"):
        long.wait()
    assert scheduler.drain(60)
    scheduler.close()
