"""The bytes that each token has in an answer's text: half characters, what a stop word cuts, text that is held back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.runtime.clients import EOS, IM_START, byte_tokenizer
from tests.runtime.test_detokenizer import sentencepiece_tokenizer
from trtstream.runtime.conversation import Session
from trtstream.runtime.requests import TurnOutput, TurnRequest, join
from trtstream.runtime.sampling import Sample
from trtstream.runtime.scheduler_limits import SchedulerLimits
from trtstream.runtime.turn import Turn


def tokenizer_of(tokens: Sequence[bytes]) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with these tokens, whose ids are their numbers."""
    characters = byte_tokenizer().convert_ids_to_tokens(range(256))
    vocabulary = {"".join(characters[byte] for byte in token): number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def turn_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stop_words: Sequence[str] = ()) -> Turn:
    """A turn that is as long as these tokens."""
    request = TurnRequest(text="", return_log_probs=True, max_tokens=len(tokens), stop_words=tuple(stop_words))
    turn = Turn(request, SchedulerLimits(), tokenizer, lambda output: None)
    turn.prepare(Session(None, 0), [], 0, (EOS,))
    return turn


def outputs(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stop_words: Sequence[str] = ()
) -> list[TurnOutput]:
    """What a turn answers in which these tokens are sampled."""
    turn, made = turn_of(tokenizer, tokens, stop_words), []
    for token in tokens:
        made.append(turn.take(Sample(token, -1.0), 0))
        if made[-1].finish_reason:
            break
    return made


def pieces(answer: TurnOutput) -> list[bytes]:
    """The text, cut at its tokens."""
    text, ends = answer.text.encode(), [*accumulate(answer.byte_counts, initial=0)]
    assert ends[-1] == len(text)
    return [text[start:end] for start, end in pairwise(ends)]


BROKEN = "\ufffd".encode()
CASES: list[tuple[list[bytes], list[str], list[bytes]]] = [
    ([b"a", b" \xf0\x9f", b"\x98\x80", b"b"], [], [b"a", b" \xf0\x9f", b"\x98\x80", b"b"]),
    ([b"one", b" EN", b"D two"], ["END"], [b"one", b" "]),
    ([b"one", b" END"], ["END"], [b"one", b" "]),
    ([b"one ", b"EN", b"D"], ["END"], [b"one "]),
    ([b"one ", b"EN", b"d"], ["END"], [b"one ", b"EN", b"d"]),
    ([b"one ", b"EN"], ["END"], [b"one ", b"EN"]),
    ([b"a\xf0\x9f", b"\x98\x80"], ["😀"], [b"a"]),
    ([b"ab\xf0\x9f", b"\x98\x80"], ["b"], [b"a"]),
    ([b"a", b"\xf0\x9f"], [], [b"a", BROKEN]),
    ([b"\x80", b"a"], [], [b"", BROKEN + b"a"]),
]


@pytest.mark.parametrize(("tokens", "stop_words", "expected"), CASES)
def test_the_bytes_of_each_token(tokens, stop_words, expected):
    answer = join(outputs(tokenizer_of(tokens), range(len(tokens)), stop_words))
    assert pieces(answer) == expected


def test_a_count_comes_with_the_last_of_its_bytes():
    tokens = [b"a", b" \xf0\x9f", b"\x98\x80", b" E", b"x"]
    made = outputs(tokenizer_of(tokens), range(5), ["END"])
    assert [(output.text, output.byte_counts) for output in made] == [
        ("a", (1,)),
        (" ", ()),
        ("😀", (3, 2)),
        (" ", ()),
        ("Ex", (2, 1)),
    ]


def test_a_cancelled_answer_has_the_tokens_of_its_text():
    turn = turn_of(tokenizer_of([b"a", b" S"]), range(2), ["STOP"])
    made = [turn.take(Sample(0, -1.0), 0), turn.final_output("cancelled", 0)]
    assert [output.byte_counts for output in made] == [(1,), ()]
    turn = turn_of(tokenizer_of([b"a S", b"", b""]), range(3), ["STOP"])
    made = [turn.take(Sample(0, -1.0), 0), turn.final_output("cancelled", 0)]
    assert [(output.text, output.byte_counts) for output in made] == [("a ", ()), ("S", (3,))]


def test_special_tokens_have_no_bytes_and_the_last_has_no_count():
    answer = join(outputs(byte_tokenizer(), [IM_START, *b"a", IM_START, *b"b", EOS]))
    assert (answer.text, answer.byte_counts, len(answer.token_ids)) == ("ab", (0, 1, 0, 1), 5)


def test_tokens_in_sentencepieces_style():
    tokenizer = sentencepiece_tokenizer()
    names = ["▁Hello", "▁world", *(f"<0x{byte:02X}>" for byte in "😀".encode()), "▁"]
    answer = join(outputs(tokenizer, tokenizer.convert_tokens_to_ids(names)))
    assert pieces(answer) == [b"Hello", b" world", *(bytes([byte]) for byte in "😀".encode()), b" "]


def test_any_answer_is_the_bytes_of_its_tokens():
    """Broken characters, a vocabulary that is smaller than the model's, stop words in the middle of tokens."""
    generator = random.Random(0)
    text = "aé中😀 ".encode()
    tokens = sorted({text[start : start + length] for start in range(len(text)) for length in (1, 2, 3)})
    tokenizer = tokenizer_of(tokens)
    for _ in range(300):
        ids = generator.choices(range(len(tokens) + 2), k=40)
        stop_words = generator.choices(["a中", "é", "😀 ", "中😀", "\ufffd\ufffd\ufffd"], k=2)
        made = outputs(tokenizer, ids, stop_words if generator.random() < 0.7 else [])
        assert len(pieces(join(made))) <= len(made)
        for end in range(1, len(made)):
            assert sum(join(made[:end]).byte_counts) <= len(join(made[:end]).text.encode())
