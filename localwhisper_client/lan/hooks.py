"""What finding and waking a machine look like from the routing's side, and where those who do it are loaded from.

Both are optional: a client that is given addresses and is not told to wake anybody loads neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

AUTO = "auto"
"""The word that stands in the place of a base URL for the servers that a `Resolver` finds."""


class Resolver(Protocol):
    """Finds the servers on the LAN. Many threads call it at once."""

    def urls(self) -> tuple[str, ...]:
        """Return their base URLs, `http://192.168.1.7:5000/v1`, best known first; none where none is found.

        Asked at every call, in a thread that may block: what was found is remembered by the resolver.
        """
        ...

    def forget(self) -> None:
        """Hear that a server it named is not there: the next `urls()` looks again."""
        ...


class Waker(Protocol):
    """Wakes the machine on the LAN. Many threads call it at once."""

    def wake(self, now: float) -> bool:
        """Wake it, unless that was done a short while ago; return whether it was done.

        `now` is monotonic time in seconds. Called in a thread that may block; must not raise.
        """
        ...


def resolver() -> Resolver:
    """Return the resolver behind `auto`.

    Raises:
        ConfigurationError: what it needs is not installed.

    """
    found: Resolver = import_module("localwhisper_client.lan.discovery").resolver()
    return found


def waker(machine: str) -> Waker:
    """Return what wakes the machine that `LOCALWHISPER_WAKE` names, `AA:BB:CC:DD:EE:FF[@host]`.

    Raises:
        ConfigurationError: that is no machine's address.

    """
    made: Waker = import_module("localwhisper_client.lan.wake").waker(machine)
    return made
