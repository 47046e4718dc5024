"""What every test has: no settings of this machine, one event loop library, and recordings to try things on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The machine may be busy with other things: how long an example takes says nothing here.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("here")

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
VOICES = {path.stem: path for path in [*(ROOT / "tests/voices").glob("*.ogg"), ROOT / "localwhisper_client/demo.ogg"]}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of the machine it runs on."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "AZURE_OPENAI_", "LOCALWHISPER_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # Nor does its log grow by what tests do.
    monkeypatch.setenv("LOCALWHISPER_SERVER_LOG_FILE", "none")


@pytest.fixture
def anyio_backend() -> str:
    """Asyncio, which uvicorn runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def voices() -> dict[str, Path]:
    """Give the repository's own recordings by name; each has its text beside it, as .txt."""
    return VOICES


@pytest.fixture(scope="session")
def shared() -> Path:
    """Give the folder of recordings beside the checkout, which not every machine has."""
    folder = ROOT.parent / "shared/speech"
    if not (folder / "manifest.tsv").is_file():
        pytest.skip("no ../shared/speech beside this checkout")
    return folder
