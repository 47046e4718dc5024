"""One real server process with the base model, for every test that does not kill it."""

import os
from collections.abc import Iterator
from pathlib import Path

import openai
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
    """A ready server with the base model on a free loopback port; what it has not, it does not look for on a hub."""
    with serving("--model", "base", environ=os.environ | {"HF_HUB_OFFLINE": "1"}) as running:
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


@pytest.fixture
def client(stock: ServerProcess) -> Iterator[openai.OpenAI]:
    """The stock SDK's client, which finds the server in its environment."""
    with openai.OpenAI(max_retries=0) as made:
        yield made
