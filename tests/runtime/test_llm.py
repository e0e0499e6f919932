"""The Python API, on a tiny random model and on a trained chat model."""

from __future__ import annotations

import _thread
import threading

import pytest
from transformers import AutoTokenizer

import trtstream
from tests.runtime.clients import wait_until
from trtstream.errors import TrtstreamError
from trtstream.runtime.scheduler import SchedulerStats


@pytest.fixture
def llm(engine_folder):
    with trtstream.load(engine_folder) as llm:
        yield llm


def test_generate_yields_the_pieces_of_the_answer(llm):
    outputs = list(llm.stream("Hello", max_tokens=12, ignore_eos=True))
    assert [len(output.token_ids) for output in outputs] == [1] * 12
    pieces = list(llm.generate("Hello", max_tokens=12, ignore_eos=True))
    assert "".join(pieces) == "".join(output.text for output in outputs)
    assert "" not in pieces


def test_a_session_goes_on(llm):
    chat = llm.session()
    list(chat.stream("Hello", max_tokens=6, ignore_eos=True))
    assert chat.session_tokens == 5 + 5
    list(chat.stream("you", max_tokens=6, ignore_eos=True))
    assert chat.session_tokens == 5 + 6 + 3 + 5
    assert llm.scheduler.stats().sessions == 1
    chat.close()
    assert llm.scheduler.stats().sessions == 0
    with pytest.raises(TrtstreamError, match="does not exist"):
        list(chat.generate("more"))


def test_a_conversation_is_come_back_to_by_its_name(engine_folder, tmp_path):
    """In another process, where its length is not known; it can go back to an earlier turn."""
    store = f"sqlite:///{tmp_path}/sessions.db"
    options = {"max_tokens": 6, "ignore_eos": True}
    with trtstream.load(engine_folder, session_store=store) as llm:
        chat = llm.session("s")
        first = "".join(chat.generate("Hello", **options))
        turn_id = chat.turn_id
        second = "".join(chat.generate("you", **options))
    with trtstream.load(engine_folder, session_store=store) as llm:
        chat = llm.session("s")
        assert chat.session_tokens is None
        again = "".join(chat.generate("you", parent_turn=turn_id, session_rewind=True, **options))
        assert (again, chat.session_tokens) == (second, 5 + 6 + 3 + 5)
        assert "".join(llm.session().generate("Hello", **options)) == first


def test_stopping_to_listen_cancels_the_turn_and_keeps_the_session(llm):
    chat = llm.session()
    pieces = chat.generate("Hello", max_tokens=1_000_000, ignore_eos=True)
    next(pieces)
    pieces.close()
    assert chat.session_tokens >= 5
    list(chat.generate("you", max_tokens=2))


def test_ctrl_c_cancels_the_turn(llm):
    def press_ctrl_c() -> None:
        wait_until(lambda: llm.scheduler.stats().running)
        _thread.interrupt_main()

    threading.Thread(target=press_ctrl_c).start()
    with pytest.raises(KeyboardInterrupt):
        list(llm.generate("Hello", max_tokens=1_000_000, ignore_eos=True))
    assert llm.scheduler.drain(60)
    assert llm.scheduler.stats() == SchedulerStats(0, 0, 0)


def test_errors_are_raised_where_the_answer_is_read(llm):
    with pytest.raises(TrtstreamError, match="top_p is 2"):
        list(llm.generate("Hello", top_p=2))
    with pytest.raises(TrtstreamError, match="timeout"):
        list(llm.generate("Hello", max_tokens=1_000_000, ignore_eos=True, timeout=0.05))


def test_a_closed_llm_refuses(engine_folder):
    llm = trtstream.load(engine_folder)
    llm.close()
    with pytest.raises(TrtstreamError, match="the engine is closed"):
        list(llm.generate("Hello"))


def test_smollm2_remembers_in_a_session_of_its_template(smollm2_engine):
    """The fed tokens are those of the template's rendering of the whole conversation: one default system prompt."""
    questions = ["The secret word is banana. What is the secret word?", "Spell it in capital letters. 😀"]
    with trtstream.load(smollm2_engine) as llm:
        chat, fed, answers = llm.session(), [], []
        real = llm.engine.decode_and_prefill

        def recording(lanes, tokens, chunks):
            for chunk in chunks.values():
                fed.extend(chunk)
            return real(lanes, tokens, chunks)

        llm.engine.decode_and_prefill = recording
        for question in questions:
            outputs = list(chat.stream(question, chat=True, max_tokens=60))
            answers.append("".join(output.text for output in outputs))
            # The last token, which ends the answer, is fed first in the next turn.
            fed.extend(token for output in outputs[:-1] for token in output.token_ids)
            assert outputs[-1].finish_reason == "stop"
    assert "banana" in answers[0]
    tokenizer = AutoTokenizer.from_pretrained(smollm2_engine / "tokenizer")
    conversation = [
        {"role": "user", "content": questions[0]},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": questions[1]},
        {"role": "assistant", "content": answers[1]},
    ]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert tokenizer.decode(fed) == rendered.removesuffix("<|im_end|>\n")
    assert rendered.count("<|im_start|>system") == 1
