"""The options that say who may use a gateway, and how much: the same for `serve` and `gateway`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

LOGGER = "trtstream.gateway.access"


@dataclass(frozen=True)
class Limits:
    """For each tenant: ``requests_per_minute`` (None: any number), and turns that run or wait at the same time."""

    requests_per_minute: int | None = None
    max_turns: int = 64


@dataclass(frozen=True)
class Access:
    """``key_file`` None lets everybody in. Web pages of ``cors_origins`` may read answers. ``log`` - is stderr."""

    key_file: Path | None = None
    limits: Limits = Limits()
    cors_origins: tuple[str, ...] = ()
    log: str | None = None

    def open_log(self) -> None:
        """From now on, log a line for each request."""
        if self.log is None:
            return
        handler = logging.StreamHandler() if self.log == "-" else logging.FileHandler(self.log)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger(LOGGER)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def access_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options, which ``command`` gets as one argument, ``access``."""

    @functools.wraps(command)
    def with_access(
        *args: Any,
        api_key_file: Path | None,
        requests_per_minute: int | None,
        max_turns_per_tenant: int,
        cors_origins: tuple[str, ...],
        access_log: str | None,
        **options: Any,
    ) -> None:
        limits = Limits(requests_per_minute, max_turns_per_tenant)
        command(*args, access=Access(api_key_file, limits, cors_origins, access_log), **options)

    decorated: Callable[..., None] = with_access
    for option in (
        click.option(
            "--access-log",
            metavar="FILE",
            help="Write a line of JSON for each request of OpenAI's protocols to this file; - is stderr.",
        ),
        click.option(
            "--cors-origin",
            "cors_origins",
            multiple=True,
            metavar="ORIGIN",
            help="Let web pages of this origin use OpenAI's protocols; may be repeated.",
        ),
        click.option(
            "--max-turns-per-tenant",
            default=Limits.max_turns,
            show_default=True,
            type=click.IntRange(min=1),
            help="Answers that are made at the same time for one tenant.",
        ),
        click.option(
            "--requests-per-minute",
            type=click.IntRange(min=1),
            help="Requests of one tenant in a minute.  [default: any number]",
        ),
        click.option(
            "--api-key-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path, resolve_path=True),
            help="Let in whoever has a key of this file, which `trtstream gateway keys` makes.  [default: everybody]",
        ),
    ):
        decorated = option(decorated)
    return decorated
