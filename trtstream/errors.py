"""The one exception that users see."""


class TrtstreamError(Exception):
    """The work failed for a reason that the user can mend.

    The message is one line that names the thing, what was expected and the mend; the command line prints it without a
    traceback and exits 1, the Triton model sends it on the request's own stream.
    """
