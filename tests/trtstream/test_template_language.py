"""Chat templates mean what they mean in transformers."""

from __future__ import annotations

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from tests.runtime.clients import CHATML, byte_tokenizer
from trtstream.rendering import render

MESSAGES = [("system", 'Be <brief> & "kind".'), ("user", " Hi \n"), ("assistant", "né"), ("user", "More")]
TEMPLATES = {
    "chatml": CHATML,
    "blocks": "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ unk_token is defined }}{{ cls_token is none }}",
    "json": "{{ messages | tojson }}{{ messages[2] | tojson(indent=2) }}{{ messages[2] | tojson(ensure_ascii=true) }}",
    "loop controls": "{% for m in messages %}{% if loop.index == 1 %}{% continue %}{% endif %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% set a = 1 %}{% for m in messages %}{% generation %}{% set a = 2 %}{{ m.content }}{{ a }}"
    "{% endgeneration %}{{ a }}{% endfor %}",
    "namespace": "{% set n = namespace(self=1, b='x') %}{% for m in messages %}{% set n.b = n.b + m.role %}{% endfor %}"
    "{{ n.b }}{{ n.self }}",
    "dict": "{{ dict(a=1) }}{{ dict([('b', 2)], c=3) }}",
    "tools": "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ enable_thinking is defined }}",
    "macro": "{% macro show(m) %}<{{ m.role }}>{{ m.content | trim }}{% endmacro %}{% for m in messages %}"
    "{{ show(m) }}{% endfor %}",
    "internals": "{{ raise_exception.__globals__ }}{{ dict.__base__ }}{{ messages.__class__ }}",
    "year": "{{ strftime_now('%Y') }}",
    "python methods": "{{ messages[0]['content'].split(' ')[-1].rstrip('.') }}{{ messages[::-1][0].get('name', '-') }}",
}
REFUSED = {
    "its own error": "{{ raise_exception('no system role') }}",
    "no template": "{% for %}",
    "an undefined thing's attribute": "{{ a.b.c }}",
    "internals": "{{ messages.__class__.__mro__ }}",
    "a changed message": "{% set _ = messages.append(1) %}",
    "a namespace's hidden name": "{% set n = namespace(__html__=1) %}",
    "a hidden name that is set": "{% set n = namespace() %}{% set n._a = 1 %}",
}


def by_transformers(tokenizer: PreTrainedTokenizerFast, answer: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in MESSAGES]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_writes_what_it_writes_there(name: str, answer: bool) -> None:
    tokenizer = byte_tokenizer(TEMPLATES[name])
    assert render(tokenizer, MESSAGES, answer) == by_transformers(tokenizer, answer)


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_is_refused_as_there(name: str) -> None:
    tokenizer = byte_tokenizer(REFUSED[name])
    with pytest.raises(jinja2.TemplateError) as expected:
        by_transformers(tokenizer, True)
    with pytest.raises(type(expected.value)):
        render(tokenizer, MESSAGES)
