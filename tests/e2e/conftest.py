"""One real server process with the base model, for every test that does not kill it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from localwhisper_client.server_process import ServerProcess, serving

ROOT = Path(__file__).parents[2]
VOICES = ROOT / "tests" / "voices"
ENGLISH = ROOT / "localwhisper_client" / "demo.ogg"
LONG = VOICES / "en-60s.ogg"
GERMAN = VOICES / "de-5s.ogg"
FRENCH = VOICES / "fr-5s.ogg"


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A ready server with the base model on a free loopback port."""
    with serving("--model", "base") as running:
        yield running


@pytest.fixture
def frail_server() -> Iterator[ServerProcess]:
    """A server of this test's own, to be stopped, frozen or killed; its model is the smallest."""
    with serving("--model", "tiny.en") as running:
        yield running


@pytest.fixture
def stock(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> ServerProcess:
    """Set the environment of a bot of which only OPENAI_BASE_URL was changed."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "whatever")
    return server
