"""Wake-on-LAN: the packet that wakes a machine which is off, and how often it is sent.

The magic packet is AMD's: six bytes of 0xFF and sixteen times the address of the network card, here in UDP to port 9.
"""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localwhisper_client import _background
from localwhisper_client.errors import ConfigurationError
from localwhisper_client.events import log

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "LOCALWHISPER_WAKE"
BROADCAST = "255.255.255.255"
PORT = 9
PAUSE = 600.0
"""Seconds between two packets to one network card: a machine needs time to start."""

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?:([:-])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}")


class SentPackets:
    """When the last packet went to each network card; thread-safe."""

    def __init__(self) -> None:
        self._at: dict[bytes, float] = {}
        _background.renewed(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def claims(self, mac: bytes, now: float) -> bool:
        """Whether this caller, and no other, should send a packet now."""
        with self._lock:
            last = self._at.get(mac)
            if last is not None and now - last < PAUSE:
                return False
            self._at[mac] = now
            return True


_sent = SentPackets()  # of the whole process, however many clients it has


@dataclass(frozen=True, slots=True)
class Target:
    """The machine to wake: `mac` is six bytes; `host` is where the packet goes."""

    mac: bytes
    host: str = BROADCAST

    def __str__(self) -> str:
        return f"{self.mac.hex(':').upper()}@{self.host}"


def parse(value: str, name: str = VARIABLE) -> Target:
    """Parse `AA:BB:CC:DD:EE:FF`, with `@host` behind it if a broadcast to the whole network does not reach it.

    Raises:
        ConfigurationError: it is no such address; `name` is the setting, for the message.

    """
    address, at, host = value.strip().partition("@")
    if not _MAC.fullmatch(address) or (at and not host.strip()):
        raise ConfigurationError(
            f"{name} is {value!r}, which is not the address of a network card. Give one such as AA:BB:CC:DD:EE:FF, "
            "or AA:BB:CC:DD:EE:FF@192.168.1.255 to say where the packet goes."
        )
    return Target(bytes.fromhex(re.sub("[:-]", "", address)), host.strip() or BROADCAST)


def packet(mac: bytes) -> bytes:
    """Return the 102 bytes that wake the network card with this address."""
    return b"\xff" * 6 + mac * 16


def send(target: Target, port: int = PORT) -> None:
    """Send the packet. There is no answer to it.

    Raises:
        OSError: there is no network, or the host has no address.

    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outgoing:
        outgoing.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        outgoing.sendto(packet(target.mac), (target.host, port))


class Waker:
    """Wakes one machine, at most once in ten minutes; `sent` is shared by all of the process."""

    def __init__(self, target: Target, deliver: Callable[[Target], None] = send, sent: SentPackets = _sent) -> None:
        self._target = target
        self._deliver = deliver
        self._sent = sent

    def wake(self, now: float) -> bool:
        """Send the packet unless one was sent recently; return whether it was sent. `now` is monotonic seconds."""
        if not self._sent.claims(self._target.mac, now):
            return False
        try:
            self._deliver(self._target)
        except OSError as failure:
            log.warning("could not wake %s: %s", self._target, failure)
            return False
        log.warning("sent a packet to wake %s", self._target)
        return True
