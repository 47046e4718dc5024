from __future__ import annotations

import functools
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client import ConfigurationError
from localwhisper_client.lan import wake
from localwhisper_client.lan.wake import BROADCAST, PAUSE, SentPackets, Target, Waker, packet, parse
from tests.client.fault_server import TEXT, FaultServer, answers, refusing

if TYPE_CHECKING:
    from tests.client.driving import Driver

MAC = bytes.fromhex("aabbccddeeff")


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
    """Colons or dashes, either case; by default a broadcast."""
    assert parse(value) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize("value", ["", "AA:BB", "AA:BB-CC:DD:EE:FF", "AA:BB:CC:DD:EE:FG", "AA:BB:CC:DD:EE:FF@", "pc"])
def test_what_is_no_address_of_a_card(value: str) -> None:
    """The error names what was set and shows one that would do."""
    with pytest.raises(ConfigurationError, match=r"MINE is .*AA:BB:CC:DD:EE:FF"):
        parse(value, "MINE")


def test_the_magic_packet() -> None:
    """Six bytes of 0xFF, then the address sixteen times."""
    assert packet(MAC) == b"\xff" * 6 + MAC * 16
    assert len(packet(MAC)) == 102


def test_the_packet_goes_out() -> None:
    """By UDP, to the host given."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as machine:
        machine.bind(("127.0.0.1", 0))
        machine.settimeout(5)
        wake.send(Target(MAC, "127.0.0.1"), machine.getsockname()[1])
        assert machine.recv(1024) == packet(MAC)


def test_at_most_once_in_ten_minutes_for_all_clients() -> None:
    """Two clients wake one card once; another card has its own pause."""
    sent: list[Target] = []
    one, two, other = (
        Waker(target, sent.append, packets)
        for packets in [SentPackets()]
        for target in (Target(MAC), Target(MAC, "10.0.0.255"), Target(bytes(6)))
    )
    assert one.wake(1000.0)
    assert not one.wake(1000.1)
    assert not two.wake(1000.0 + PAUSE - 1)
    assert other.wake(1000.2)
    assert two.wake(1000.0 + PAUSE)
    assert [target.mac for target in sent] == [MAC, bytes(6), MAC]


def test_a_packet_that_cannot_be_sent_does_not_fail_the_call(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""

    def unplugged(_: Any) -> None:
        raise OSError("no network")

    assert not Waker(Target(MAC), unplugged, SentPackets()).wake(0.0)
    assert "no network" in caplog.text


def test_a_wrong_setting_is_an_error_when_the_client_is_made(drive: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the first outage."""
    monkeypatch.setenv("LOCALWHISPER_WAKE", "pc")
    with pytest.raises(ConfigurationError, match="LOCALWHISPER_WAKE"):
        drive.client()


class Machine:
    """A machine that is off: it waits for its packet and then starts its server."""

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
        """Wait for the packet, then start the server."""
        self.packets.append(self.card.recv(1024))
        self.server = FaultServer(answers, at=self.port)

    def close(self) -> None:
        """Stop it."""
        self.thread.join()
        if self.server:
            self.server.stop()
        self.card.close()


def test_a_call_under_wait_wakes_the_machine_and_waits_for_it(drive: Driver) -> None:
    """One packet for all calls; the answer comes once the machine is up."""
    machine = Machine()
    deliver = functools.partial(wake.send, port=machine.card.getsockname()[1])
    waker = Waker(Target(MAC, "127.0.0.1"), deliver, SentPackets())
    try:
        url = f"http://127.0.0.1:{machine.port}/v1"
        client = drive.client(local_base_url=url, policy="wait", timeout=20, waker=waker)
        assert drive.call(client) == TEXT
        assert drive.call(client) == TEXT
    finally:
        machine.close()
    assert machine.packets == [packet(MAC)]
