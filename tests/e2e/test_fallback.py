"""The client's fallback, with a real server that is up, stopped, frozen, or killed during a call."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import localwhisper
from localwhisper_client import Attempt, Event
from localwhisper_client.cli.demo import STAND_IN_TEXT, stand_in_cloud
from localwhisper_client.server_process import ServerProcess
from tests.client.driving import in_time
from tests.e2e.conftest import ENGLISH, LONG

pytestmark = pytest.mark.model


class Client:
    """A client of one server, with a stand-in for the cloud; it keeps the attempts that were made."""

    def __init__(self, server: ServerProcess, cloud: str) -> None:
        self.attempts: list[Attempt] = []
        self.whisper = localwhisper.LocalWhisper(
            local_base_url=server.base_url, policy="cloud", base_url=cloud, api_key="made-up", on_event=self._keep
        )

    def _keep(self, event: Event) -> None:
        if isinstance(event, Attempt):
            self.attempts.append(event)

    def transcribe(self, path: Path = ENGLISH, timeout: float = 120) -> str:
        return self.whisper.audio.transcriptions.create(file=path, model="whisper-1", timeout=timeout).text


@pytest.fixture
def client_of() -> Iterator[Callable[[ServerProcess], Client]]:
    """Make clients of a server, with one stand-in for the cloud; they are closed."""
    with stand_in_cloud() as cloud, contextlib.ExitStack() as stack:

        def make(server: ServerProcess) -> Client:
            client = Client(server, cloud)
            stack.callback(client.whisper.close)
            return client

        yield make


def test_stopped(frail_server: ServerProcess, client_of: Callable[[ServerProcess], Client]) -> None:
    """The server answers, then the cloud does. A stopped server is asked once, until its breaker closes."""
    client = client_of(frail_server)
    assert "milk" in client.transcribe()
    frail_server.stop()
    assert client.transcribe() == client.transcribe() == STAND_IN_TEXT
    attempts = [(attempt.verdict, attempt.cloud) for attempt in client.attempts]
    assert attempts == [("answered", False), ("outage", False), ("answered", True), ("answered", True)]


def test_frozen(server: ServerProcess, client_of: Callable[[ServerProcess], Client]) -> None:
    """A frozen server accepts connections and does not answer: after half of the call's time the cloud is asked."""
    client = client_of(server)

    def within(seconds: float) -> None:
        client.attempts.clear()
        assert client.transcribe(timeout=seconds) == STAND_IN_TEXT
        assert [attempt.cloud for attempt in client.attempts] == [False, True]

    server.process.send_signal(signal.SIGSTOP)
    try:
        in_time(within)
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_killed_during_a_request(frail_server: ServerProcess, client_of: Callable[[ServerProcess], Client]) -> None:
    """If the server is killed while it works, the whole file goes to the cloud."""
    client = client_of(frail_server)
    texts: list[str] = []
    caller = threading.Thread(target=lambda: texts.append(client.transcribe(LONG)))
    caller.start()
    until = time.monotonic() + 120
    while not frail_server.health()["requests"]:
        assert time.monotonic() < until, "the request never arrived"
    frail_server.process.kill()
    caller.join(120)
    assert texts == [STAND_IN_TEXT]
    assert [attempt.cloud for attempt in client.attempts] == [False, True]
