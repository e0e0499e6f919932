"""TensorRT's Python libraries, one for each TensorRT target: their import, their errors, and why they may not run here.

The API of the two is the same.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from trtstream.errors import TrtstreamError
from trtstream.plugins.cuda_device import why_no_gpu

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class Library:
    """A module, the first version that has the layers of our networks, and where to install it."""

    module: str
    least: tuple[int, int]
    where: str


LIBRARIES = {
    "tensorrt": Library("tensorrt", (10, 15), "on the machine with the NVIDIA GPU; pip fetches it from NVIDIA"),
    "tensorrt-rtx": Library("tensorrt_rtx", (1, 7), "on any machine to build, on the one with the RTX GPU to run"),
}


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


def why_no_tensorrt(target: str, built_with: str | None = None) -> str | None:
    """Why engines of a TensorRT target cannot run here, and the mend; None if they can.

    ``built_with``: the version of the library that built the engine, which alone can run it.
    """
    if reason := why_no_gpu():
        return reason
    try:
        module = load_tensorrt(target)
    except TrtstreamError as error:
        return str(error)
    if built_with not in (None, module.__version__):
        return (
            f"{module.__name__} {module.__version__} runs its own engines only, and {built_with} built this one; "
            "build it again, or install that version"
        )
    return None


def new_logger(trt: ModuleType) -> trt.ILogger:
    """A logger that prints nothing and keeps, as ``last_error``, TensorRT's word on its last failure, in one line.

    TensorRT gives the reason of a None or False in no other way.
    """

    class Logger(trt.ILogger):
        last_error = "it does not say why"

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            # A builder that needs no GPU looks for one all the same and reports, as an error, that there is no driver.
            if severity <= trt.ILogger.Severity.ERROR and "cudaError 35" not in message:
                self.last_error = " ".join(message.split())

    return Logger()
