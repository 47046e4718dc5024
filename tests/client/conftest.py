from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from tests.client.driving import FLAVOURS, Driver, driver
from tests.client.fault_server import FaultServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="session")
def certificates_once() -> Iterator[None]:
    """Read the machine's certificates once, and not for each of a thousand clients: that is half of their time."""
    import ssl

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture
def module_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start without the module's client of another test, and without what the SDK's own wrote into its settings."""
    import openai

    import localwhisper

    monkeypatch.setattr(localwhisper, "_current", None)
    monkeypatch.setattr(openai, "api_key", None)
    monkeypatch.setattr(openai, "http_client", None)
    yield
    if localwhisper._current is not None:
        localwhisper._current[1].close()


@pytest.fixture(params=FLAVOURS)
def drive(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """Drive the sync client, then the async one."""
    with driver(request.param) as made:
        yield made


@pytest.fixture
def local_server() -> Iterator[FaultServer]:
    """Run a local server that answers."""
    with serving() as server:
        yield server


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """Run a stand-in for OpenAI, which the environment points at, with a key."""
    with serving() as server:
        monkeypatch.setenv("LOCALWHISPER_CLOUD_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-cloud")
        yield server
