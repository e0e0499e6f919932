"""A session store that neither answers nor ends: its sessions' turns are refused, and nothing else waits."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.runtime.clients import Client, ask
from tests.sessions.conftest import new_database
from tests.sessions.proxy import Proxy
from trtstream.errors import TrtstreamError
from trtstream.runtime.llm import open_journal
from trtstream.runtime.loading import load_engine
from trtstream.runtime.scheduler import Scheduler
from trtstream.runtime.scheduler_limits import SchedulerLimits

pytestmark = pytest.mark.process
SESSIONS = 5


def test_turns_are_refused_until_it_answers_again(
    postgres, engine_folder, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtstream.sessions.database.SECONDS", 2)
    monkeypatch.setattr("trtstream.runtime.turn_reader.READ_SECONDS", 2.0)
    with closing(Proxy(postgres.folder, "hung")) as proxy:
        limits = SchedulerLimits(commit_timeout=1.0)
        journal = open_journal(engine_folder, proxy.url(new_database(postgres)), limits)
        scheduler = Scheduler(load_engine(engine_folder), tokenizer, limits, journal)
        with closing(scheduler):
            last = [ask(scheduler, text="Hello", session_key=key, max_tokens=2).last for key in range(SESSIONS)]
            proxy.swallows = True
            clients = [Client(scheduler, text="a", session_key=key, max_tokens=2) for key in range(SESSIONS)]
            ask(scheduler, text="Hello", max_tokens=20, ignore_eos=True)  # without a session
            for client in clients:
                with pytest.raises(TrtstreamError) as error:
                    client.wait()
                assert error.value.code == "unavailable"
            proxy.swallows = False
            for key in range(SESSIONS):
                ask(scheduler, text="a", session_key=key, parent_turn=last[key].turn_id, max_tokens=2)
