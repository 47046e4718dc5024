from __future__ import annotations

import socket
from typing import Any

import pytest

from localwhisper_client import ConfigurationError, wake
from localwhisper_client.wake import BROADCAST, PAUSE, Target, Waker, packet, parse

MAC = bytes.fromhex("aabbccddeeff")


@pytest.fixture(autouse=True)
def nobody_woken_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet of another test counts."""
    monkeypatch.setattr(wake, "_sent", {})


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
