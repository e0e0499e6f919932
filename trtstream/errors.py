"""The one exception that users see."""

from __future__ import annotations


class TrtstreamError(Exception):
    """The work failed for a reason that the user can fix.

    The message is one line that names the thing, what was expected and the fix; the command line prints it without a
    traceback and exits 1, the Triton model sends it on the request's own stream. ``code`` is for programs: one of
    `request_fields.ERROR_CODES` where a client of the model may want to act on it.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


def one_line(error: BaseException, characters: int = 300) -> str:
    """What an exception says, as the end of a message: on one line, cut, without control characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= characters else text[:characters] + " ..."
