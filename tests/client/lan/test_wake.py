from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client import ConfigurationError
from localwhisper_client.lan import wake
from localwhisper_client.lan.wake import BROADCAST, PAUSE, Target, Waker, packet, parse
from tests.client.fault_server import TEXT, FaultServer, answers, refusing

if TYPE_CHECKING:
    from tests.client.driving import Driver

MAC = bytes.fromhex("aabbccddeeff")


@pytest.fixture(autouse=True)
def nobody_woken_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet of another test counts."""
    monkeypatch.setattr(wake, "_sent", wake._Sent())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("AA:BB:CC:DD:EE:FF", Target(MAC, BROADCAST)),
        (" aa-bb-cc-dd-ee-ff ", Target(MAC, BROADCAST)),
        ("AA:BB:CC:DD:EE:FF@192.168.1.255", Target(MAC, "192.168.1.255")),
        ("AA:BB:CC:DD:EE:FF@pc.home", Target(MAC, "pc.home")),
    ],
)
def test_a_card_and_where_to_send(value: str, expected: Target) -> None:
    """Colons or dashes, either case; to everybody unless told."""
    assert parse(value) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize("value", ["", "AA:BB", "AA:BB-CC:DD:EE:FF", "AA:BB:CC:DD:EE:FG", "AA:BB:CC:DD:EE:FF@", "pc"])
def test_what_is_no_card(value: str) -> None:
    """The error names what was set and shows one that would do."""
    with pytest.raises(ConfigurationError, match=r"MINE is .*AA:BB:CC:DD:EE:FF"):
        parse(value, "MINE")


def test_the_magic_packet() -> None:
    """Six bytes of 0xFF, then the address sixteen times."""
    assert packet(MAC) == b"\xff" * 6 + MAC * 16
    assert len(packet(MAC)) == 102


def test_the_packet_goes_out() -> None:
    """By UDP, to the host given."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as box:
        box.bind(("127.0.0.1", 0))
        box.settimeout(5)
        wake.send(Target(MAC, "127.0.0.1"), box.getsockname()[1])
        assert box.recv(1024) == packet(MAC)


def test_at_most_once_in_ten_minutes_for_all_clients() -> None:
    """Whoever asks; another card has a time of its own."""
    sent: list[Target] = []
    one, two = Waker(Target(MAC), sent.append), Waker(Target(MAC, "10.0.0.255"), sent.append)
    other = Waker(Target(bytes(6)), sent.append)
    assert one.wake(1000.0)
    assert not one.wake(1000.1)
    assert not two.wake(1000.0 + PAUSE - 1)
    assert other.wake(1000.2)
    assert two.wake(1000.0 + PAUSE)
    assert [target.mac for target in sent] == [MAC, bytes(6), MAC]


def test_a_packet_that_cannot_be_sent_is_not_the_calls_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""

    def unplugged(_: Any) -> None:
        raise OSError("no network")

    assert not Waker(Target(MAC), unplugged).wake(0.0)
    assert "no network" in caplog.text


def test_the_setting_makes_a_waker() -> None:
    """Where it can be read."""
    assert wake.waker("AA:BB:CC:DD:EE:FF")._target == Target(MAC)
    with pytest.raises(ConfigurationError, match="LOCALWHISPER_WAKE"):
        wake.waker("pc")


class Box:
    """A machine that is off: it listens for its packet alone, and then starts its server."""

    def __init__(self) -> None:
        self.card = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.card.bind(("127.0.0.1", 0))
        self.card.settimeout(20)
        self.packets: list[bytes] = []
        with refusing() as port:
            self.port = port
        self.server: FaultServer | None = None
        self.thread = threading.Thread(target=self.sleep)
        self.thread.start()

    def sleep(self) -> None:
        """Wait to be woken, and take a moment to start."""
        self.packets.append(self.card.recv(1024))
        time.sleep(0.3)
        self.server = FaultServer(answers, at=self.port)

    def close(self) -> None:
        """Switch it off."""
        self.thread.join()
        if self.server:
            self.server.stop()
        self.card.close()


def test_a_call_under_wait_wakes_the_box_and_waits_for_it(monkeypatch: pytest.MonkeyPatch, drive: Driver) -> None:
    """One packet, whatever number of calls; the words come once the box is up."""
    box = Box()
    try:
        monkeypatch.setattr(wake.send, "__defaults__", (box.card.getsockname()[1],))
        monkeypatch.setenv("LOCALWHISPER_WAKE", "AA:BB:CC:DD:EE:FF@127.0.0.1")
        client = drive.client(local_base_url=f"http://127.0.0.1:{box.port}/v1", policy="wait", timeout=20)
        assert drive.call(client) == TEXT
        assert drive.call(client) == TEXT
    finally:
        box.close()
    assert box.packets == [packet(MAC)]
