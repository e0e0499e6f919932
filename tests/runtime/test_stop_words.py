from __future__ import annotations

from itertools import combinations

import pytest

from tests.runtime.clients import EOS, IM_START, byte_tokenizer
from trtstream.runtime.stop_words import StopWords, stop_ids

CASES = [
    ("one STOP two", ["STOP"], "one "),
    ("ababac", ["abac"], "ab"),
    ("aaab", ["aab"], "a"),
    ("a\n\nb", ["\n\n", "b"], "a"),
    ("nothing", ["STOP", "gx"], "nothing"),
    ("ends in ST", ["STOP"], "ends in ST"),
    ("x😀y", ["😀"], "x"),
]


@pytest.mark.parametrize(("text", "words", "expected"), CASES)
def test_the_text_ends_before_the_first_stop_word_however_it_is_cut(text, words, expected):
    for cuts in (c for n in range(4) for c in combinations(range(1, len(text)), n)):
        stop, emitted, stopped = StopWords(words), "", False
        for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
            new, stopped = stop.push(text[start:end])
            emitted += new
            assert expected.startswith(emitted)
            if stopped:
                break
        emitted += "" if stopped else stop.flush()
        assert (emitted, stopped) == (expected, expected != text)


def test_text_is_held_back_only_while_a_stop_word_may_begin():
    stop = StopWords(["STOP"])
    assert [stop.push(piece)[0] for piece in ("a", "S", "TO", "S", "x")] == ["a", "", "", "STO", "Sx"]


def test_without_stop_words_text_passes():
    stop = StopWords([])
    assert stop.push("text") == ("text", False)
    assert stop.flush() == ""


def test_a_stop_word_that_is_a_special_token():
    tokenizer = byte_tokenizer()
    words = ["<|im_start|>", "<|im_end|>", "<|im_", "a", "<|im_end|>\n"]
    assert stop_ids(words, tokenizer) == {EOS, IM_START}
    assert stop_ids(words[2:], tokenizer) == stop_ids([], tokenizer) == stop_ids(words, None) == frozenset()
