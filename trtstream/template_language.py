"""What chat templates are written in: jinja, in a sandbox, with the few additions that transformers gives them."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


@lru_cache(maxsize=16)
def compile_template(text: str) -> Template:
    """Raises jinja2.TemplateError for text that is not a template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise, strftime_now=_now, namespace=_TemplateNamespace, dict=_make_dictionary
    )
    return environment.from_string(text)


class _Generation(Extension):
    """``{% generation %}`` marks an answer, for training; its text is written as if the mark were not there."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _TemplateNamespace(Namespace):
    """No name begins with an underscore, which Python could take for what it asks objects for itself."""

    def __init__(*args: Any, **attributes: Any) -> None:  # so that an attribute may be named self
        self, *rest = args
        for name in dict(*rest, **attributes):
            _check_name(name)
        Namespace.__init__(self, *rest, **attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace's {name!r} begins with an underscore")


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _make_dictionary(*args: Any, **values: Any) -> dict[Any, Any]:
    """In place of the type, which has attributes."""
    return dict(*args, **values)
