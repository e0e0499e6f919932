"""A turn's outputs and errors as Triton sends them. Knows nothing of Triton's Python backend, as `triton_request`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trtstream.deploy.contract import format_error, to_array
from trtstream.errors import TrtstreamError, one_line
from trtstream.runtime.request_fields import OUTPUTS
from trtstream.runtime.requests import TurnOutput, join

logger = logging.getLogger("trtstream")


def response_tensors(outputs: Sequence[TurnOutput], counts_apart: bool = False) -> dict[str, np.ndarray]:
    """One response's tensors, by name, for consecutive outputs of a turn; ``counts_apart`` as in `Delivery`."""
    joined = join(outputs)
    if counts_apart:
        joined = replace(joined, num_output_tokens=len(joined.token_ids))
    return {name: to_array(getattr(joined, field.attribute), field.datatype) for name, field in OUTPUTS.items()}


def error_message(request_id: str, error: Exception) -> str:
    """The message of the error that ends a request. An error that nobody foresaw is logged with its traceback."""
    if isinstance(error, TrtstreamError):
        return format_error(error.code or "invalid", request_id, str(error))
    logger.error("a request failed", exc_info=error)
    return format_error("internal", request_id, f"the model failed: {type(error).__name__}: {one_line(error)}")
