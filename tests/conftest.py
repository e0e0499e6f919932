from __future__ import annotations

import signal
from pathlib import Path

import pytest

from trtstream.smollm2 import fetch_smollm2


@pytest.fixture(autouse=True)
def ctrl_c_works() -> None:
    """A job in the background has SIGINT ignored, and a command run in this process puts its own handler in place."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The trained SmolLM2-135M-Instruct as a .gguf file, fetched once per machine."""
    return fetch_smollm2()
