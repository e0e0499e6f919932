"""TensorRT's Python libraries, one for each TensorRT target: their import, their errors, and why they may not run here.

Both have the same API.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trtstream.errors import TrtstreamError
from trtstream.plugins.cuda_device import why_no_gpu
from trtstream.targets import TARGETS

if TYPE_CHECKING:
    import tensorrt as trt


LIBRARIES = {name: entry.library for name, entry in TARGETS.items() if entry.library is not None}
"""Of the TensorRT targets, by their names."""


def load_tensorrt(target: str) -> ModuleType:
    """The module ``tensorrt`` or ``tensorrt_rtx``. Raises TrtstreamError if it is missing, broken or too old."""
    library = LIBRARIES[target]
    install = f"pip install 'trtstream[{target}]' ({library.where})"
    try:
        module = importlib.import_module(library.module)
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == library.module:
            raise TrtstreamError(f"target {target} needs the library {library.module}: {install}") from None
        reason = " ".join(str(error).split())
        raise TrtstreamError(f"{library.module} cannot be imported ({reason}); install it again: {install}") from error
    version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
    if version < library.least:
        least = ".".join(map(str, library.least))
        raise TrtstreamError(
            f"{library.module} {module.__version__} is too old, and at least {least} is needed: {install}"
        )
    return module


def why_no_tensorrt(target: str) -> str | None:
    """Why engines of a TensorRT target cannot run here, and how to fix it; None if they can."""
    if reason := why_no_gpu():
        return reason
    try:
        load_tensorrt(target)
    except TrtstreamError as error:
        return str(error)
    return None


def why_not_built_with(target: str, toolchain: Mapping[str, Any]) -> str | None:
    """Why the installed library cannot run an engine with this toolchain, and how to fix it; None if it can."""
    module = load_tensorrt(target)
    built_with = toolchain.get(module.__name__)
    if built_with in (None, module.__version__):
        return None
    return (
        f"{module.__name__} {module.__version__} runs its own engines only, and {built_with} built this one; "
        "build it again, or install that version"
    )


def new_logger(module: ModuleType) -> trt.ILogger:
    """A logger that prints nothing and keeps TensorRT's last error message, as one line, in ``last_error``.

    TensorRT gives the reason for a None or False nowhere else.
    """

    base: Any = module.ILogger

    class Logger(base):
        last_error = "it does not say why"

        def log(self, severity: Any, message: str) -> None:
            # A builder that needs no GPU still looks for one, and reports a missing driver as an error.
            if severity <= module.ILogger.Severity.ERROR and "cudaError 35" not in message:
                self.last_error = " ".join(message.split())

    return Logger()
