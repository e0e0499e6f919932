from __future__ import annotations

from pathlib import Path

import pytest

from trtstream.smollm2 import fetch_smollm2


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The trained SmolLM2-135M-Instruct as a .gguf file, fetched once per machine."""
    return fetch_smollm2()
