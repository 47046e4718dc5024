"""Several servers, found and woken ones; both flavours, on real sockets."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client import LocalServerUnavailable, LocalWhisper
from localwhisper_client.lan import hooks
from localwhisper_client.routing.latency import LatencyEstimate
from tests.client.driving import SHAPES
from tests.client.fault_server import TEXT, answers, error, refusing, reset, says, serving

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tests.client.driving import Driver
    from tests.client.fault_server import FaultServer, Request

GONE = b'{"text": "from the other"}'


def test_pace() -> None:
    """Queue and latency add up; a queue is worked off, an estimate forgotten, calls under way count."""
    pace = LatencyEstimate()
    assert pace.expected(0.0) == 0.0
    pace.answered(2.0, None, now=100.0)
    assert pace.expected(100.0) == 2.0
    pace.answered(3.0, 10.0, now=100.0)
    assert pace.expected(100.0) == 2.3
    pace.queued(5.0, now=100.0)
    assert pace.expected(101.0) == 6.3
    assert pace.expected(106.0) == 2.3
    pace.began()
    assert pace.expected(106.0) == 4.6
    pace.ended()
    assert pace.expected(161.0) == 0.0
    pace.answered(60.0, 3600.0, now=161.0)
    assert pace.expected(161.0) == 0.2


@pytest.mark.parametrize("shape", SHAPES)
def test_the_box_with_the_shorter_queue_is_asked(shape: str, drive: Driver) -> None:
    """By its own word in the header of its last answer, when it is full as well as when it is not."""
    full = b"x-localwhisper-queue-seconds: 40"

    def busy(conn: socket.socket, request: Request) -> None:
        error(503, full)(conn, request)

    with serving(busy) as one, serving() as other:
        client = drive.client(local_base_url=f"{one.url},{other.url}")
        assert [drive.call(client, shape) for _ in range(3)] == [TEXT] * 3
        assert (len(one.calls), len(other.calls)) == (1, 3)


def test_a_queue_told_with_an_answer_counts(drive: Driver) -> None:
    """The next call goes elsewhere; one without the header, or with nonsense in it, stays in the given order."""
    ok = b'{"text": "a voice message", "usage": {"type": "duration", "seconds": 3}}'
    with serving(says(200, b"application/json", ok, b"x-localwhisper-queue-seconds: 7.5")) as one, serving() as other:
        client = drive.client(local_base_url=f"{one.url},{other.url}")
        for _ in range(3):
            drive.call(client)
        assert (len(one.calls), len(other.calls)) == (1, 2)
    with serving(says(200, b"application/json", ok, b"x-localwhisper-queue-seconds: nan")) as one, serving() as other:
        client = drive.client(local_base_url=f"{one.url},{other.url}")
        for _ in range(3):
            drive.call(client)
        assert (len(one.calls), len(other.calls)) == (3, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_on_a_box_that_dies_moves_to_the_next(shape: str, drive: Driver, cloud: FaultServer) -> None:
    """Whole, with its file from the beginning; each box has its own breaker."""
    with serving(lambda conn, _: reset(conn)) as dying, refusing() as off, serving() as well:
        client = drive.client(local_base_url=f"http://127.0.0.1:{off}/v1,{dying.url},{well.url}", policy="cloud")
        for _ in range(4):
            assert drive.call(client, shape, file=("a.ogg", b"the audio")) == TEXT
        assert all(b"the audio" in call.body for call in well.calls)
        passing = [backend.breaker.allows_calls() for backend in client._route.lan.backends]
        assert passing == [False, False, True]
    assert not cloud.calls


@dataclass
class Finder:
    """A resolver that knows what it is told."""

    found: list[tuple[str, ...]]
    forgets: int = 0

    def urls(self) -> tuple[str, ...]:
        return self.found[0]

    def forget(self) -> None:
        self.forgets += 1
        if len(self.found) > 1:
            self.found.pop(0)


@dataclass
class Alarm:
    """A waker that counts."""

    woken: list[float] = field(default_factory=list)
    wakes: Callable[[], None] = lambda: None

    def wake(self, now: float) -> bool:
        self.woken.append(now)
        self.wakes()
        return True


def _hooked(monkeypatch: pytest.MonkeyPatch, resolver: Any = None, waker: Any = None) -> None:
    monkeypatch.setattr(hooks, "resolver", lambda: resolver)
    monkeypatch.setattr(hooks, "waker", lambda machine: waker if machine == "AA:BB:CC:DD:EE:FF" else None)


@pytest.mark.parametrize("policy", ["local_only", "cloud", "wait"])
def test_a_box_that_changed_its_address_is_found_again(
    policy: str, drive: Driver, cloud: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the call that noticed; a server named by the cloud's address is not believed."""
    with refusing() as old, serving() as server:
        finder = Finder([(f"http://127.0.0.1:{old}/v1", "https://api.openai.com/v1"), (server.url,)])
        _hooked(monkeypatch, finder)
        client = drive.client(local_base_url="auto", policy=policy, timeout=20)
        assert drive.call(client) == TEXT
        copy = client.with_options(local_api_key="k")
        assert drive.call(copy) == TEXT
        drive.run(copy.close)
        assert (finder.forgets, len(server.calls)) == (1, 2)
        assert server.calls[1].headers["authorization"] == "Bearer k"
    assert not cloud.calls


def test_a_box_that_is_not_found_is_an_outage(
    drive: Driver, cloud: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cloud takes the call if it may; else the error says that nobody was found."""
    _hooked(monkeypatch, Finder([()]))
    with pytest.raises(LocalServerUnavailable, match="no server was found"):
        drive.call(drive.client(local_base_url="auto"))
    assert drive.call(drive.client(local_base_url="auto", policy="cloud")) == TEXT
    assert drive.last is not None
    assert drive.last.reason == "no server was found on the LAN"


def test_what_finds_and_wakes_is_loaded_when_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the modules that know how."""
    made: list[str] = []

    class Module:
        def __init__(self, name: str) -> None:
            self.name = name

        def resolver(self) -> Finder:
            made.append(self.name)
            return Finder([()])

        def waker(self, machine: str) -> Alarm:
            made.append(f"{self.name} {machine}")
            return Alarm()

    monkeypatch.setattr(hooks, "import_module", Module)
    monkeypatch.setenv("LOCALWHISPER_WAKE", "AA:BB")
    LocalWhisper(local_base_url="http://pc/v1").close()
    assert made == ["localwhisper_client.lan.wake AA:BB"]
    LocalWhisper(local_base_url="AUTO,http://pc/v1").close()
    assert made[1:] == ["localwhisper_client.lan.discovery", "localwhisper_client.lan.wake AA:BB"]


@pytest.mark.parametrize("policy", ["local_only", "cloud", "wait"])
def test_an_outage_wakes_the_machine(
    policy: str, drive: Driver, cloud: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a call; under `wait` the call is there when the machine is."""
    monkeypatch.setenv("LOCALWHISPER_WAKE", "AA:BB:CC:DD:EE:FF")
    alarm = Alarm()
    with serving() as server:
        server.answers_probe = error(503)

        def wakes() -> None:
            server.answers_probe = None
            server.behaviour = answers

        server.behaviour = lambda conn, _: reset(conn)
        alarm.wakes = wakes
        _hooked(monkeypatch, waker=alarm)
        client = drive.client(local_base_url=server.url, policy=policy, timeout=20)
        client._route.lan.backends[0].breaker.signal(_outage(), time.monotonic())
        if policy == "local_only":
            with pytest.raises(LocalServerUnavailable):
                drive.call(client)
        else:
            assert drive.call(client) == TEXT
    assert len(alarm.woken) == 1
    assert len(cloud.calls) == (policy == "cloud")


def _outage() -> Any:
    from localwhisper_client.routing.breaker import Signal

    return Signal.OUTAGE
