from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.runtime.clients import BOS, EOS, byte_tokenizer
from trtstream.runtime.detokenizer import MAX_PENDING, Detokenizer


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space is part of the next token, the first one is dropped, and unknown characters are bytes."""
    words = ["<unk>", "▁", "▁Hello", "▁world", "lo", ",", "!"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


class Recording:
    """A tokenizer that records how many tokens it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.longest = tokenizer, 0

    def decode(self, tokens, **options):
        self.longest = max(self.longest, len(tokens))
        return self.tokenizer.decode(tokens, **options)


def stream(tokenizer, ids, context=()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context)
    return [detokenizer.push(token) for token in ids] + [detokenizer.flush()]


@pytest.mark.parametrize("text", ["plain", "naïve café", "😀👩‍👩‍👧‍👦", "日本語 and  spaces\n\n", " leading"])
def test_pieces_join_up_and_no_character_is_broken(text):
    tokenizer = byte_tokenizer()
    pieces = stream(tokenizer, text.encode())
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert pieces[-1] == ""


def test_a_character_comes_whole_with_its_last_byte():
    tokenizer = byte_tokenizer()
    assert stream(tokenizer, "a😀b".encode()) == ["a", "", "", "", "😀", "b", ""]


def test_an_incomplete_character_is_flushed():
    tokenizer = byte_tokenizer()
    assert stream(tokenizer, "a😀".encode()[:-1]) == ["a", "", "", "", "\ufffd"]


def test_any_bytes_join_up_to_the_whole_decode():
    tokenizer, generator = byte_tokenizer(), random.Random(0)
    for _ in range(200):
        ids = generator.choices("aé中😀".encode(), k=40)
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_endless_broken_text_is_not_held_back_and_costs_the_same():
    tokenizer = Recording(byte_tokenizer())
    pieces = stream(tokenizer, b"\x9f" * 500)
    assert len("".join(pieces[: MAX_PENDING + 8])) >= MAX_PENDING
    assert "".join(pieces) == "\ufffd" * 500
    assert tokenizer.longest <= 2 * MAX_PENDING


def test_a_long_text_is_never_decoded_again():
    tokenizer = Recording(byte_tokenizer())
    text = "some words and 😀 " * 50
    assert "".join(stream(tokenizer, text.encode())) == text
    assert tokenizer.longest <= 8


def test_special_tokens_have_no_text():
    tokenizer = byte_tokenizer()
    assert stream(tokenizer, [BOS, *b"a", EOS, *b"b"]) == ["", "a", "", "b", ""]


def test_leading_spaces_stay_with_their_words():
    tokenizer = sentencepiece_tokenizer()
    hello, world, comma = tokenizer.convert_tokens_to_ids(["▁Hello", "▁world", ","])
    assert stream(tokenizer, [hello, world, comma, world]) == ["Hello", " world", ",", " world", ""]
    assert stream(tokenizer, [world], context=[hello]) == [" world", ""]


def test_byte_fallback_characters_come_whole():
    tokenizer = sentencepiece_tokenizer()
    hello, *emoji = tokenizer.convert_tokens_to_ids(["▁Hello", *(f"<0x{byte:02X}>" for byte in "😀".encode())])
    assert stream(tokenizer, [hello, *emoji, hello]) == ["Hello", "", "", "", "😀", " Hello", ""]
