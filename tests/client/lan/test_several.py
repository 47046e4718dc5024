"""Several servers, found and woken ones; both flavours, on real sockets."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from localwhisper_client import LocalServerUnavailable
from localwhisper_client.routing.backend import Signal
from tests.client.driving import SHAPES, backend, route
from tests.client.fault_server import TEXT, answers, error, refusing, reset, says, serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client.driving import Driver
    from tests.client.fault_server import FaultServer

GONE = b'{"text": "from the other"}'


@pytest.mark.parametrize("shape", SHAPES)
def test_the_server_with_the_shorter_queue_is_tried_first(shape: str, drive: Driver) -> None:
    """By the header of its last answer, whether that was a transcript or a 503."""
    with serving(error(503, b"x-localwhisper-queue-seconds: 40")) as one, serving() as other:
        client = drive.client(local_base_url=f"{one.url},{other.url}")
        assert [drive.call(client, shape) for _ in range(3)] == [TEXT] * 3
        assert (len(one.calls), len(other.calls)) == (1, 3)


@pytest.mark.parametrize(("told", "calls"), [(b"7.5", (1, 2)), (b"nan", (3, 0))])
def test_a_queue_told_with_an_answer_counts(told: bytes, calls: tuple[int, int], drive: Driver) -> None:
    """The next call goes to the other server; without a usable header the given order holds."""
    ok = b'{"text": "a voice message", "usage": {"type": "duration", "seconds": 3}}'
    header = b"x-localwhisper-queue-seconds: " + told
    with serving(says(200, b"application/json", ok, header)) as one, serving() as other:
        client = drive.client(local_base_url=f"{one.url},{other.url}")
        for _ in range(3):
            drive.call(client)
        assert (len(one.calls), len(other.calls)) == calls


@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_that_is_cut_off_moves_to_the_next_server(shape: str, drive: Driver, cloud: FaultServer) -> None:
    """With its whole file; each server has its own breaker."""
    with serving(lambda conn, _: reset(conn)) as dying, refusing() as off, serving() as well:
        client = drive.client(local_base_url=f"http://127.0.0.1:{off}/v1,{dying.url},{well.url}", policy="cloud")
        for _ in range(4):
            assert drive.call(client, shape, file=("a.ogg", b"the audio")) == TEXT
        assert all(b"the audio" in call.body for call in well.calls)
        passing = [backend.breaker.allows_calls() for backend in route(client).servers.backends]
        assert passing == [False, False, True]
    assert not cloud.calls


@dataclass
class Finder:
    """A finder that gives the next of these answers after each `forget`."""

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


@pytest.mark.parametrize("policy", ["local_only", "cloud", "wait"])
def test_a_server_with_a_new_address_is_found_again(policy: str, drive: Driver, cloud: FaultServer) -> None:
    """Within the call that noticed it; an announcement that names the cloud is ignored."""
    with refusing() as old, serving() as server:
        finder = Finder([(f"http://127.0.0.1:{old}/v1", "https://api.openai.com/v1"), (server.url,)])
        client = drive.client(local_base_url="auto", policy=policy, timeout=20, finder=finder)
        assert drive.call(client) == TEXT
        copy = client.with_options(local_api_key="k")
        assert drive.call(copy) == TEXT
        drive.run(copy.close)
        assert (finder.forgets, len(server.calls)) == (1, 2)
        assert server.calls[1].headers["authorization"] == "Bearer k"
    assert not cloud.calls


def test_a_server_that_is_not_found_is_an_outage(drive: Driver, cloud: FaultServer) -> None:
    """The cloud takes the call if the policy allows it; else the error says that no server was found."""
    finder = Finder([()])
    with pytest.raises(LocalServerUnavailable, match="no server was found"):
        drive.call(drive.client(local_base_url="auto", finder=finder))
    assert drive.call(drive.client(local_base_url="auto", policy="cloud", finder=finder)) == TEXT
    assert drive.last is not None
    assert drive.last.reason == "no server was found on the LAN"


@pytest.mark.parametrize("policy", ["local_only", "cloud", "wait"])
def test_an_outage_wakes_the_machine(policy: str, drive: Driver, cloud: FaultServer) -> None:
    """Once a call; under `wait` the call is answered once the machine is up."""
    alarm = Alarm()
    with serving() as server:
        server.answers_probe = error(503)

        def wakes() -> None:
            server.answers_probe = None
            server.behaviour = answers

        server.behaviour = lambda conn, _: reset(conn)
        alarm.wakes = wakes
        client = drive.client(local_base_url=server.url, policy=policy, timeout=20, waker=alarm)
        backend(client).breaker.signal(Signal.OUTAGE, time.monotonic())
        if policy == "local_only":
            with pytest.raises(LocalServerUnavailable):
                drive.call(client)
        else:
            assert drive.call(client) == TEXT
    assert len(alarm.woken) == 1
    assert len(cloud.calls) == (policy == "cloud")
