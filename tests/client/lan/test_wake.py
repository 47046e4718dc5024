from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client import ConfigurationError
from localwhisper_client.lan import wake
from localwhisper_client.lan.wake import BROADCAST, PAUSE, SentPackets, Target, Waker, parse

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


def test_the_packet_goes_out() -> None:
    """By UDP, to the host given: six bytes of 0xFF, then the address sixteen times."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as machine:
        machine.bind(("127.0.0.1", 0))
        machine.settimeout(5)
        wake.send(Target(MAC, "127.0.0.1"), machine.getsockname()[1])
        assert machine.recv(1024) == b"\xff" * 6 + MAC * 16


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
