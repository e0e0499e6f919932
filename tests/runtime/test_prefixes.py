"""Whole conversations on a session store: what some turn has seen of one is not fed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.runtime.clients import ENDLESS, Client, ask, byte_tokenizer, refused, started
from trtstream.runtime.scheduler import Scheduler

Start = Callable[..., Scheduler]
OPTIONS: dict[str, Any] = {"max_tokens": 9}
SYSTEM = "Be"  # which has room in the sinks
TEXTS = ("Hello", "And then? " * 6, "Go on.", "Why?")


def said(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """A user's texts, each but the last followed by the answer to it."""
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def complete(scheduler: Scheduler, messages: list[dict[str, str]], **options: Any) -> Client:
    return ask(scheduler, messages=json.dumps(messages), **{**OPTIONS, **options})


def converse(ask_next: Callable[[list[str], str], Client]) -> list[tuple[str, int, int]]:
    """Text, tokens of the prompt and tokens seen of each turn."""
    history: list[str] = []
    turns = []
    for text in TEXTS:
        client = ask_next(history, text)
        history += [text, client.text]
        turns.append((client.text, client.last.num_input_tokens, client.last.session_tokens))
    return turns


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_a_conversation_that_is_sent_again_is_a_session(start: Start, schedule: Start, system: str | None) -> None:
    """Also when every turn comes to another process; and a turn of a session with `chat` counts as one of them."""
    undisturbed = schedule()

    def of_session(history: list[str], text: str, scheduler: Scheduler = undisturbed) -> Client:
        first = {"system": system} if not history else {}
        return ask(scheduler, text=text, chat=True, session_key="s", **first, **OPTIONS)

    def sent_again(history: list[str], text: str, scheduler: Scheduler) -> Client:
        return complete(scheduler, said(*history, text, system=system))

    expected = converse(of_session)
    one = start()
    assert converse(lambda history, text: sent_again(history, text, one)) == expected
    assert converse(lambda history, text: sent_again(history, text, start())) == expected
    begun = start()
    assert converse(lambda *asked: sent_again(*asked, begun) if asked[0] else of_session(*asked, begun)) == expected


def test_the_cache_of_a_conversation_is_not_copied(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = start()
    first = complete(scheduler, said("Hello"))
    monkeypatch.setattr(scheduler._engine, "import_state", None)  # every other way to go on calls it
    complete(scheduler, said("Hello", first.text, "More"))
    assert scheduler.stats().sessions == 1


def test_an_edited_history_forks_at_the_edit(start: Start, schedule: Start) -> None:
    scheduler = start()
    history: list[str] = []
    for text in TEXTS:
        history += [text, complete(scheduler, said(*history, text)).text]
    edited = complete(scheduler, said(*history[:4], "No: what else?"))
    undisturbed = schedule()
    for text in (*TEXTS[:2], "No: what else?"):
        expected = ask(undisturbed, text=text, chat=True, session_key="s", **OPTIONS)
    assert (edited.ids, edited.last.num_input_tokens) == (expected.ids, expected.last.num_input_tokens)
    assert edited.last.session_tokens == expected.last.session_tokens
    in_front = complete(scheduler, said("Other", *history[1:], "More"))  # another first question: nothing is known
    assert in_front.last.session_tokens + 1 == in_front.last.num_input_tokens + in_front.last.num_output_tokens


def test_an_answer_of_another_source_is_fed_with_the_rest(start: Start, schedule: Start) -> None:
    scheduler = start()
    first = complete(scheduler, said("Hello"))
    continued = complete(scheduler, said("Hello", first.text, "More", "An answer of my own.", "And?"))
    rest = """<|im_end|>
<|im_start|>user
More<|im_end|>
<|im_start|>assistant
An answer of my own.<|im_end|>
<|im_start|>user
And?<|im_end|>
<|im_start|>assistant
"""
    undisturbed = schedule()
    assert ask(undisturbed, text="Hello", chat=True, session_key="s", **OPTIONS).last.finish_reason == "length"
    expected = ask(undisturbed, text=rest, session_key="s", **OPTIONS)
    assert (continued.ids, continued.last.num_input_tokens) == (expected.ids, expected.last.num_input_tokens)


def test_two_clients_with_one_history(start: Start) -> None:
    """Each goes its own way, though the other has gone on; a third regenerates the same answer meanwhile."""
    scheduler = start()
    first = complete(scheduler, said("Hello")).text
    ways = [said("Hello", first, text) for text in ("One way", "Another", "One way")]
    answers = [complete(scheduler, way) for way in ways]
    others = [complete(start(), way) for way in ways]
    assert [answer.ids for answer in answers] == [other.ids for other in others]
    running = started(scheduler, messages=json.dumps(ways[0]), **ENDLESS)
    assert complete(scheduler, ways[0]).ids == answers[0].ids
    running.turn.cancel()
    cut = running.wait().text
    assert complete(scheduler, said("Hello", first, "One way", cut, "x")).last.num_input_tokens < 60


@pytest.mark.parametrize("how", [{"max_tokens": 3}, {"stop_words": ("e", "a", "o", "i")}])
def test_an_answer_that_was_cut_is_found(start: Start, how: dict[str, Any]) -> None:
    """By the text that the client got of it, with other white space at its ends."""
    scheduler = start()
    first = complete(scheduler, said("Hello"), **{**how, "temperature": 0.8, "random_seed": 3})
    again = complete(scheduler, said(" Hello\n", f"\n{first.text} ", "More"))
    assert again.last.session_tokens > again.last.num_input_tokens + again.last.num_output_tokens


def test_tenants_have_nothing_in_common(start: Start, log: Any) -> None:
    scheduler = start()
    mine = complete(scheduler, said("Hello"), tenant="mine")
    for tenant, fed_before in (("mine", True), ("other", False), ("", False)):
        again = complete(scheduler, said("Hello", mine.text, "More"), tenant=tenant).last
        whole = again.session_tokens + 1 - again.num_output_tokens == again.num_input_tokens
        assert whole is not fed_before
        if tenant != "mine":
            for request in ({}, {"session_key": "new"}):
                error = refused(scheduler, parent_turn=mine.last.turn_id, tenant=tenant, **request)
                assert error.code == "not_found"
    sessions = {tenant: ask(scheduler, text=tenant, session_key="s", tenant=tenant, **OPTIONS) for tenant in ("a", "b")}
    assert {str(summary.key) for summary in log.summaries()} == {"a/s", "b/s"}
    ask(scheduler, session_key="s", tenant="b", session_end=True)
    asked = {"session_key": "s", "session_tokens": sessions["a"].last.session_tokens, **OPTIONS}
    ask(scheduler, text="more", tenant="a", **asked)
    for tenant in ("b", ""):
        assert refused(scheduler, tenant=tenant, **asked).code == "not_found"
    assert refused(scheduler, session_key="a/s").code == "conflict"


def test_a_turn_that_is_not_to_be_kept(start: Start, log: Any) -> None:
    scheduler = start()
    first = complete(scheduler, said("Hello"))
    messages = said("Hello", first.text, "More")
    second = complete(scheduler, messages, session_end=True)
    kept = complete(scheduler, messages)
    assert (second.ids, second.last.turn_id) == (kept.ids, "")
    assert second.last.num_input_tokens == kept.last.num_input_tokens
    assert complete(scheduler, said("Other"), session_end=True).last.turn_id == ""
    assert log.branch(bytes.fromhex(kept.last.turn_id))[0].id.hex() == first.last.turn_id
    assert log.turn(bytes.fromhex(first.last.turn_id)).prompt == "Hello"
    assert scheduler.stats().sessions == 1


HIDES = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}|{% endfor %}"
THINKS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
)
COUNTS = "{% for m in messages %}{{ loop.index }}.{{ m.content }}|{% endfor %}"
SYSTEM_LAST = """{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}
{%- set ns.system = m.content %}{% elif loop.last %}[{{ ns.system }}{{ m.content }}]{% else %}[{{ m.content }}]
{%- endif %}{% endfor %}"""


@pytest.mark.parametrize(
    ("template", "system", "continues"),
    [
        (HIDES, None, False),
        (THINKS, None, False),
        (COUNTS, None, False),
        (SYSTEM_LAST, SYSTEM, False),
        (SYSTEM_LAST, None, True),
    ],
)
def test_a_template_that_changes_what_it_has_written(
    start: Start, schedule: Start, template: str, system: str | None, continues: bool
) -> None:
    """The conversation is fed whole, as without a store."""
    scheduler, whole = start(), schedule()
    for one in (scheduler, whole):
        one._intake._reader._tokenizer = byte_tokenizer(template)
    first = complete(scheduler, said("Hello", system=system)).text
    messages = said("Hello", first, "More", system=system)
    again, expected = complete(scheduler, messages), complete(whole, messages)
    assert (again.last.num_input_tokens < expected.last.num_input_tokens) is continues
    if not continues:
        assert (again.ids, again.last.session_tokens) == (expected.ids, expected.last.session_tokens)
