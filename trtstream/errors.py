"""The one exception that users see, and how the exceptions of libraries become it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TrtstreamError(Exception):
    """The work failed for a reason that the user can fix.

    The message is one line that names the thing, what was expected and the fix; the command line prints it without a
    traceback and exits 1, the Triton model sends it on the request's own stream. Names out of files may hold anything,
    so that line breaks and control characters are shown by their escapes. ``code`` is for programs: one of
    `request_fields.ERROR_CODES` where a client of the model may want to act on it.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(printable(message))
        self.code = code


@contextmanager
def named_errors(what: str, fix: str) -> Iterator[None]:
    """Raise whatever a library raises in the block as one line: that ``what`` cannot be used, why, and the ``fix``."""
    try:
        yield
    except (TrtstreamError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library's Rust is not even an Exception
        raise TrtstreamError(f"{what} ({one_line(error)}); {fix}") from error


def one_line(error: BaseException, characters: int = 300) -> str:
    """What an exception says, as the end of a message: on one line, cut, without control characters."""
    text = printable(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= characters else text[:characters] + " ..."


def printable(text: str) -> str:
    """``text`` with its line breaks, control characters and lone surrogates as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
