"""A probe asks one server whether it is ready, one at a time, within its timeout; on real sockets."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client import LocalWhisper
from localwhisper_client.lan import health
from localwhisper_client.lan.health import Prober
from localwhisper_client.routing.backend import Backend
from tests.client.driving import route
from tests.client.fault_server import drips, error, reset, says, serving

if TYPE_CHECKING:
    import socket

    from tests.client.fault_server import Request


@pytest.mark.parametrize(
    ("ready", "health", "passes"),
    [
        (says(200, b"application/json", b'{"ready": true}'), error(500), True),
        (error(503), says(200, b"application/json", b'{"status": "ok", "ready": true}'), False),
        (error(503), says(200, b"application/json", b'{"status": "loading", "ready": false}'), True),
        (error(503), says(200, b"application/json", b'{"status": "failed", "ready": false}'), False),
        (error(503), says(200, b"application/json", b"[]"), False),
        (error(401), error(500), True),
        (error(404), error(404), True),
        (error(404), says(200, b"application/json", b"{}"), True),
        (error(404), error(503), False),
        (error(405), says(200, b"text/plain", b"OK"), True),
        (says(200, b"text/html", b"<html>"), says(200, b"application/json", b"{}"), True),
        (says(200, b"text/html", b"<html>"), says(200, b"text/html", b"<html>"), False),
        (error(500), says(200, b"application/json", b"{}"), False),
        (says(302, b"text/plain", b"", b"location: /login"), says(200, b"application/json", b"{}"), False),
        (lambda conn, _: reset(conn), says(200, b"application/json", b"{}"), False),
    ],
)
def test_a_probe_asks_whether_the_server_is_ready(ready: Any, health: Any, passes: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    """`/health` is "ok" while the engine hangs; it counts where there is no `/ready`, and while a model is loaded."""

    def behave(conn: socket.socket, request: Request) -> None:
        {"/ready": ready, "/health": health}.get(request.path, error(404))(conn, request)

    with serving() as server, LocalWhisper(local_base_url=server.url) as client:
        server.answers_probe = behave
        prober = route(client).servers.all[0].prober
        assert prober.ask(lambda _: None).result(60) is passes


def test_many_calls_make_one_probe() -> None:
    """Fifty threads share one probe and its result; the next call starts another."""
    answers, probes = threading.Event(), []

    def is_ready(url: str, timeout: float) -> tuple[bool, str]:
        probes.append(url)
        return answers.wait(60), "well"

    prober = Prober(Backend("pc"), "http://pc/v1", 1.0, is_ready)
    with ThreadPoolExecutor(50) as pool:
        futures = list(pool.map(lambda _: prober.ask(lambda _: None), range(50)))
        answers.set()
        assert all(future.result(60) for future in futures)
    assert probes == ["http://pc/v1"]
    assert prober.ask(lambda _: None).result(60)
    assert len(probes) == 2


def test_a_probe_that_is_answered_byte_by_byte_comes_to_an_end() -> None:
    """There is one probe at a time, so one that hung would stop all later ones. The answer takes 200 s here."""
    with serving() as server:
        server.answers_probe = lambda conn, _: drips(conn, b"H" * 10_000)
        started = time.monotonic()
        assert not health.is_healthy(server.url.replace("/v1", "/health"), 0.1)[0]
        assert time.monotonic() - started < 60
