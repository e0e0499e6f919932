"""Which spans of a conversation a question finds: nothing that its window answers, and nothing about something else."""

from __future__ import annotations

from random import Random

import pytest

from tests.sessions.conftest import DATABASES
from tests.sessions.records import commit_after, turn_after
from trtstream.sessions.recall import Question, Recall, SpanIndex, Vocabulary
from trtstream.sessions.spans import Cutter
from trtstream.sessions.turn_log import TurnLog

RING = 100
QUESTION = "\nWhere does the brave otter live?"
FACT = "The brave otter lives in Rome."
OTHERS = ("Grass is green in May, as a rule.", "A ship went out to sea in the morning.", "Nobody knew the old song.")
FILLER = " ".join(OTHERS) + " "
BYTES = Vocabulary(
    Cutter([chr(number) for number in range(256)], ()), lambda spans: [bytes(ids).decode() for ids in spans]
)


def found(text: str, question: str = QUESTION, before: str = "") -> list[str]:
    """What is found of a session that has read ``text`` in one turn, and sees its last `RING` bytes."""
    index = SpanIndex(BYTES)
    index.add(b"turn", 0, [*text.encode()])
    spans = index.search(Question(question, len(text), 0, RING, 200, before=before))
    index.close()
    return [bytes(part.span.ids).decode().strip() for part in spans]


def test_what_has_left_the_window_is_found() -> None:
    assert found(f"{FILLER}{FACT} {FILLER}") == [FACT]


@pytest.mark.parametrize(
    "old",
    [
        "The brave otter lives in Oslo.",  # as good
        "The brave badger lives in Oslo.",  # worse
        "The brave otter lives.",  # shorter, and so ranked before it, but of the same words
    ],
)
def test_a_window_that_answers_is_left_alone(old: str) -> None:
    assert found(f"{old} {FILLER}") == [old] or "badger" in old
    assert found(f"{old} {FILLER}{FACT} ") == []


def test_what_is_visible_and_answers_less_changes_nothing() -> None:
    for visible in ("The otter likes the river.", "I asked: where does the brave otter live now?"):
        assert found(f"{FACT} {FILLER}{visible} ") == [FACT]


def test_two_rare_words_side_by_side_are_one_name() -> None:
    others = "The brave badger lives in Oslo. The calm otter lives in Cairo. "
    others += "".join(f"{name} lives in the village, too. " for name in ("Ann", "Tom", "Kim", "Leo"))
    assert found(others + FILLER * 4, "\nThe brave otter lives in") == []
    assert found(others + FILLER * 4, "\nThe calm otter lives in") == ["The calm otter lives in Cairo."]
    # Not side by side: each by itself.
    assert found(others + FILLER * 4, "\nThe otter, is it calm?") == ["The calm otter lives in Cairo."]


def test_words_that_build_sentences_find_nothing() -> None:
    asked_before = "How do I get a coffee stain out of a shirt? What is that in the shade of a tree? "
    for question in ("\nHow do I fall asleep?", "\nWhat is a prime number?", "\nWhere is that?"):
        assert found(asked_before + FILLER * 2, question) == []
    # Of three words, one is not enough: it was another stain.
    assert found(asked_before + FILLER * 2, "\nDescribe the mustard stain") == []
    assert found(asked_before + FILLER * 2, "\nIs the stain gone?") == ["How do I get a coffee stain out of a shirt?"]


def test_of_a_fact_that_changed_the_later_one_is_found() -> None:
    first, later = "The brave otter lives in Warsaw.", FACT
    assert found(f"{first} {FILLER}{later} {FILLER}") == [later]
    assert found(f"{later} {FILLER}{first} {FILLER}") == [first]
    both = "The brave otter has two young ones."
    assert found(f"{both} {FILLER}{first} {FILLER}", "\nTell of the brave otter") == [both, first]


@pytest.mark.parametrize("question", ["\nWhere can it be now?", "\nAnd where?"])
def test_a_text_that_refers_to_the_one_before_is_searched_with_it(question: str) -> None:
    before = "Tell me about the brave otter!"
    text = f"{FACT} {FILLER}{before} "
    assert found(text, question, before) == [FACT]
    assert FACT not in found(text, question)
    assert found(text, "Which song did nobody in the village know?", before) == []  # it names what it asks for


class Dropping(Recall):
    """Its first index is dropped when a turn has it, but not its lock."""

    dropped: SpanIndex | None = None

    def _index(self, key, vocabulary):
        entry = super()._index(key, vocabulary)
        if self.dropped is None:
            self.dropped = entry[1]
            self.drop(key)
        return entry


@pytest.mark.parametrize("url", DATABASES[:1], indirect=True)
def test_an_index_may_be_dropped_while_it_is_wanted(log: TurnLog) -> None:
    turn = turn_after(None, Random(0), tokens=[*f"{FACT} {FILLER}".encode()], pending=32, start=0)
    assert log.commit([commit_after("s", None, turn)]) == [None]
    recall = Dropping(log)
    (span,) = recall.find("s", turn, Question(QUESTION, turn.position, 0, RING, 200), BYTES)
    assert bytes(span.span.ids).decode().strip() == FACT
    assert recall.dropped.is_closed
