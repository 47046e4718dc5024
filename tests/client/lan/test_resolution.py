"""Names are looked up within the time that a call has, and once at a time."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from localwhisper_client import _background
from localwhisper_client.lan.transport import look_up


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "192.168.1.9"])
def test_addresses_need_no_look_up(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No name server is asked."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError(host)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert look_up(host).result(0) == (host,)


def test_callers_share_a_slow_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand calls for a machine that is off share one thread; the next look-up begins when that has ended."""
    done, asked = threading.Event(), []

    def slow(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        done.wait(10)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    before = threading.active_count()
    waiting = [look_up("pc.local") for _ in range(1000)]
    assert not _background.wait(waiting[0], 0.01)
    assert (len(asked), threading.active_count() - before) == (1, 1)
    done.set()
    for future in waiting:
        assert isinstance(future.exception(5), OSError)
    assert isinstance(look_up("pc.local").exception(5), OSError)
    assert asked == ["pc.local"] * 2


def test_each_address_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which the system would try them."""
    found = [(socket.AF_INET6, 1, 6, "", ("fd00::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("10.0.0.1", 0))] * 2
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert look_up("two.local").result(5) == ("fd00::1", "10.0.0.1")
