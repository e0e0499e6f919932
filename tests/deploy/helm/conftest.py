"""helm, and a file of API keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.deploy.helm.chart import Chart, fetch_helm
from trtstream.deploy.gateway.keys import add_key
from trtstream.errors import TrtstreamError


@pytest.fixture(scope="session")
def chart() -> Chart:
    """Our chart. Where helm cannot be fetched the test is skipped, but in CI."""
    try:
        return Chart(fetch_helm())
    except TrtstreamError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    add_key(path, "acme")
    return path
