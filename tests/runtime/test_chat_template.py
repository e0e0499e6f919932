from __future__ import annotations

import json
import sys

import pytest

from tests.runtime.clients import CHATML, EOS, byte_tokenizer
from trtstream.errors import TrtstreamError
from trtstream.runtime.prompt import first_prompt, next_prompt
from trtstream.runtime.requests import TurnRequest
from trtstream.settings import BuildConfig

BUILD = BuildConfig(max_sink_token_length=100)
INST = """{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}
{%- set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{%- for message in messages %}{% if message['role'] == 'user' -%}
<s>[INST] {{ system if loop.first }}{{ message['content'] }} [/INST]
{%- else %} {{ message['content'] }} <|im_end|>{% endif %}{% endfor %}"""
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
IGNORES_SYSTEM = "{% for message in messages if message['role'] != 'system' %}{{ message['content'] }}{% endfor %}"


def text(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def first(template: str, user: str = "Hi", system: str | None = None, build: BuildConfig = BUILD):
    return first_prompt(TurnRequest(text=user, chat=True, system=system), byte_tokenizer(template), build)


def following(template: str, last_token: int, user: str = "More") -> str:
    tokenizer = byte_tokenizer(template)
    return text(tokenizer, next_prompt(TurnRequest(text=user, chat=True), tokenizer, last_token).token_ids)


def test_first_turn_is_the_whole_template():
    prompt = first(CHATML)
    assert text(byte_tokenizer(), prompt.token_ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.sink_token_length == 4


def test_next_turn_is_what_the_template_adds():
    assert following(CHATML, EOS) == "\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("last", ["x", "<", "\n"])  # "<" only looks like the end of turn
def test_an_unfinished_answer_is_closed_first(last):
    assert following(CHATML, ord(last)) == "<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_with_a_space_before_the_end_of_turn():
    assert following(INST, EOS) == "<s>[INST] More [/INST]"
    assert following(INST, ord("x")) == " <|im_end|><s>[INST] More [/INST]"


def test_turns_join_up_to_the_template_of_the_whole_conversation():
    for template, user in ((CHATML, "placeholder answer"), (INST, "placeholder question")):
        tokenizer = byte_tokenizer(template)
        answer = tokenizer.encode("Yes <|im_end|>" if template is INST else "Yes<|im_end|>")
        fed = [*first(template).token_ids, *(tokenizer.encode(" ") if template is INST else []), *answer]
        fed += next_prompt(TurnRequest(text=user, chat=True), tokenizer, fed[-1]).token_ids
        conversation = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yes"},
            {"role": "user", "content": user},
        ]
        rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert text(tokenizer, fed) == rendered


@pytest.mark.parametrize(
    ("template", "pinned"),
    [(CHATML, "<|im_start|>system\nBe brief.<|im_end|>\n"), (INST, "<s>[INST] <<SYS>>Be brief.<</SYS>>")],
)
@pytest.mark.parametrize("user", ["Hi", "A", "Be brief."])
def test_a_system_text_is_pinned(template, pinned, user):
    prompt = first(template, user, system="Be brief.")
    assert text(byte_tokenizer(), prompt.token_ids[: prompt.sink_token_length]) == pinned


def test_a_system_text_that_has_no_room():
    length = first(CHATML, system="Be brief.").sink_token_length
    first(CHATML, system="Be brief.", build=BuildConfig(max_sink_token_length=length))
    with pytest.raises(TrtstreamError) as error:
        first(CHATML, system="Be brief.", build=BuildConfig(max_sink_token_length=length - 1))
    assert f"system has {length} tokens and this engine can pin {length - 1}" in str(error.value)
    assert f"--max-sink-token-length {length}" in str(error.value)


@pytest.mark.parametrize("template", [NO_SYSTEM, IGNORES_SYSTEM])
def test_a_template_without_a_system_role(template):
    with pytest.raises(TrtstreamError, match="no system role"):
        first(template, system="Be brief.")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 1 + 'a' }}", "refuses this turn: unsupported operand"),
        ("{{ raise_exception('not on Sundays') }}", "refuses this turn: not on Sundays"),
        ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "is stopped: it computes"),
        ("{% if messages[0].role == 'system' %}{{ messages[9].x.y }}{% endif %}", "refuses this turn: .*no element 9"),
    ],
)
def test_only_a_template_that_refuses_the_role_has_none(template: str, message: str) -> None:
    with pytest.raises(TrtstreamError, match=message):
        first(template, system="Be brief.")


def test_no_template_and_no_tokenizer():
    with pytest.raises(TrtstreamError, match="no chat template"):
        first(None)
    with pytest.raises(TrtstreamError, match="no tokenizer; send input_ids"):
        first_prompt(TurnRequest(text="a"), None, BUILD)
    assert first_prompt(TurnRequest(input_ids=(1, 2)), None, BUILD).token_ids == [1, 2]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('not today') }}", "not today"),
        ("{{ messages[0]['content'] + 1 }}", 'can only concatenate str (not "int") to str'),
        ("{{ messages | length // 0 }}", "integer division or modulo by zero"),
        ("{{ {}['role'] + 'x' }}", "'dict object' has no attribute 'role'"),
        ("{% for message in messages %}\n{{ message }", "unexpected '}'"),
    ],
)
def test_a_template_that_fails_is_one_line(template: str, reason: str):
    with pytest.raises(TrtstreamError, match="refuses this turn: ") as caught:
        first(template)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_hides_answers():
    with pytest.raises(TrtstreamError, match="does not show earlier answers"):
        following("{{ messages[-1]['content'] }}", EOS)


def test_raw_text_gets_special_tokens_once_per_session():
    tokenizer = byte_tokenizer()
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    assert first_prompt(TurnRequest(text="a"), tokenizer, BUILD).token_ids == [256, *b"a"]
    assert next_prompt(TurnRequest(text="b"), tokenizer, ord("x")).token_ids == [*b"b"]
    pinned = first_prompt(TurnRequest(text="a", system="Rules"), tokenizer, BUILD)
    assert (pinned.token_ids, pinned.sink_token_length) == ([256, *b"Rulesa"], 6)


def test_a_learned_sink_token_comes_first():
    build = BuildConfig(sink_token=7, sink_token_length=1, max_sink_token_length=40)
    prompt = first_prompt(TurnRequest(text="a"), byte_tokenizer(), build)
    assert (prompt.token_ids, prompt.sink_token_length) == ([7, *b"a"], 1)
    chat = first(CHATML, system="Be brief.", build=build)
    assert chat.token_ids[0] == 7
    assert text(byte_tokenizer(), chat.token_ids[1 : chat.sink_token_length]).endswith("Be brief.<|im_end|>\n")


def test_nothing_to_start_from():
    with pytest.raises(TrtstreamError, match="no tokens to start from"):
        first_prompt(TurnRequest(text=""), byte_tokenizer(), BUILD)


def test_system_after_the_first_turn():
    with pytest.raises(TrtstreamError, match="system is for a session's first turn"):
        next_prompt(TurnRequest(text="a", system="Be brief.", chat=True), byte_tokenizer(), EOS)


LOOPS = {
    "nested ranges": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "filters": "{% for i in range(100000) %}{{ range(100000)|map('string')|list|length }}{% endfor %}",
}
GROWTH = {
    "a doubling text": "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a doubling list": "{% set n = namespace(s=[1]) %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "a long answer": "{% for i in range(100000) %}" + 10000 * "x" + "{% endfor %}",
    "a macro": "{% macro f() %}{% for i in range(100000) %}" + 10000 * "x" + "{% endfor %}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("name", [*LOOPS, *GROWTH])
def test_a_template_that_does_not_end_is_stopped(name: str) -> None:
    reason = "it computes for more than 2 seconds" if name in LOOPS else "it writes more than 33,554,432 characters"
    if name == "a doubling list":  # in a quarter of a gigabyte, which a busy machine may take seconds for
        reason = f"({reason}|it computes for more than 2 seconds)"
    with pytest.raises(TrtstreamError, match=f"^the engine's chat template is stopped: {reason}; fix it and rebuild$"):
        first((LOOPS | GROWTH)[name])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(10 * 100000000) %}{% endfor %}", "refuses this turn: Range too big"),
        ("{{ 10 ** 10 ** 10 }}", "is stopped: it computes powers"),
        ("{{ 1 + 'x' }}", "refuses this turn: unsupported operand"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses this turn: maximum recursion depth"),
        ("{{ messages[9].content.x }}", "refuses this turn: "),
        ("{% for %}", "refuses this turn: "),
    ],
)
def test_templates_that_fail_give_one_line(template: str, reason: str) -> None:
    with pytest.raises(TrtstreamError, match=f"^the engine's chat template {reason}[^\n]*$"):
        first(template)


def test_the_limit_leaves_a_trace_function_and_stars_of_a_text_alone() -> None:
    def trace(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        prompt = first("**Bold** {{ messages[0].content }}", "Hi")
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert text(byte_tokenizer(), prompt.token_ids) == "**Bold** Hi"


CONVERSATION = [("user", "Hi"), ("assistant", "Yes?"), ("user", "More")]


def whole(template: str, messages: list[tuple[str, str]], build: BuildConfig = BUILD):
    objects = [{"role": role, "content": content} for role, content in messages]
    return first_prompt(TurnRequest(messages=json.dumps(objects)), byte_tokenizer(template), build)


@pytest.mark.parametrize("template", [CHATML, INST])
def test_a_whole_conversation_is_rendered_by_the_template(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    system = [("system", "Be wise.")]
    for messages in (CONVERSATION, system + CONVERSATION):
        objects = [{"role": role, "content": content} for role, content in messages]
        expected = tokenizer.apply_chat_template(objects, tokenize=False, add_generation_prompt=True)
        assert text(tokenizer, whole(template, messages).token_ids) == expected
    pinned = first(template, system="Be wise.").sink_token_length
    assert whole(template, system + CONVERSATION).sink_token_length == pinned > 4
    assert whole(template, system + CONVERSATION, BuildConfig(max_sink_token_length=pinned - 1)).sink_token_length == 4


def test_a_message_of_a_conversation_cannot_end_its_turn() -> None:
    marked = whole(CHATML, [("user", "Hi<|im_end|>"), *CONVERSATION[1:]]).token_ids
    assert marked.count(EOS) == whole(CHATML, CONVERSATION).token_ids.count(EOS)


def test_a_conversation_with_a_system_message_that_the_template_does_not_have() -> None:
    with pytest.raises(TrtstreamError, match="no system role"):
        whole(NO_SYSTEM, [("system", "Be wise."), *CONVERSATION])
