"""Command-line options for the sampling of answers, from the table of request fields."""

from __future__ import annotations

from collections.abc import Callable

import click

from trtstream.runtime.request_fields import INPUTS, Field

SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "random_seed", "stop_words", "recall")
SHORTER = {"random_seed": "--seed", "stop_words": "--stop"}


def sampling_options(defaults: dict[str, object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each of `SAMPLING`, with that name as its parameter; None or () is unset."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(SAMPLING):
            field = INPUTS[name]
            command = click.option(
                SHORTER.get(name, f"--{name.replace('_', '-')}"),
                name,
                type=_type(field),
                multiple=field.vector,
                default=defaults.get(name),
                show_default=name in defaults,
                help=_help(field),
            )(command)
        return command

    return decorate


def _type(field: Field) -> click.ParamType:
    if field.limits is None:
        return click.STRING
    if field.datatype == "FP32":
        return click.FloatRange(field.limits.least, field.limits.most, min_open=field.limits.above)
    return click.IntRange(field.limits.least, field.limits.most)


def _help(field: Field) -> str:
    text = field.meaning.replace("`", "")
    if field.limits is not None and field.limits.note:
        text = f"{text.rstrip('.')}; {field.limits.note}."
    return f"{text} May be given several times." if field.vector else text
