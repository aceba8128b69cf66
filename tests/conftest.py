"""No test reaches the network: huggingface_hub, which reads its settings when imported, is pointed at the local Hub first."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub

_HUB = Hub().start()
_HOME = tempfile.TemporaryDirectory(prefix="graphmem-tests-")
os.environ.update(
    HF_ENDPOINT=_HUB.url,
    HF_HOME=_HOME.name,
    HF_HUB_ETAG_TIMEOUT="2",
    HF_HUB_DOWNLOAD_TIMEOUT="2",
    HF_HUB_DISABLE_TELEMETRY="1",
    NO_COLOR="1",
)
for _name in (
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HUGGING_FACE_HUB_TOKEN",
    "http_proxy",
    "https_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
):
    os.environ.pop(_name, None)

#: Third-party figures to check against; tests that need them skip, visibly, where they are absent.
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="Write golden files anew instead of comparing with them.")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The local Hub, emptied."""
    _HUB.repos.clear()
    _HUB.requests.clear()
    return _HUB


@pytest.fixture
def overwrite(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written."""
    return bool(request.config.getoption("--overwrite"))


@pytest.fixture
def shared_models() -> Path:
    """Genuine configs and indexes, where this machine has them."""
    folder = SHARED / "models"
    if not folder.is_dir():
        pytest.skip("no ../shared/models beside the checkout")
    return folder
