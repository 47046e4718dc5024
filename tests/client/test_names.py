from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from localwhisper_client.names import Name


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "192.168.1.9"])
def test_addresses_need_no_look_up(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no name is known without asking anybody."""

    def refuse(*_: Any) -> Any:
        raise AssertionError(host)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Name(host).known(0)


def test_a_slow_resolver_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box that is off is asked for by mDNS for five seconds; a call waits as long as for a connection."""
    gate, asked = threading.Event(), []

    def slow(host: str, *_: Any) -> Any:
        asked.append(host)
        gate.wait(10)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    name = Name("pc.local")
    started = time.monotonic()
    assert not name.known(0.05)
    assert not name.known(0.05)  # joins the look-up that is under way
    assert time.monotonic() - started < 5
    assert asked == ["pc.local"]
    gate.set()


def test_a_name_that_nobody_knows_is_left_to_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends quickly, and the connection says what it was."""

    def unknown(*_: Any) -> Any:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert Name("nowhere.invalid").known(5)
