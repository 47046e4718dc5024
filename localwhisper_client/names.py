"""Looks a host's name up without waiting for a resolver that takes its time.

A PC that is switched off is often asked for by mDNS, which gives up after five seconds; no timeout of the HTTP library
covers that in a synchronous call.
"""

from __future__ import annotations

import ipaddress
import socket
import threading


class Name:
    """A host of which it is known, or not, whether its name can be looked up quickly."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.addresses: tuple[str, ...] = ()
        """What the last look-up found."""
        self._lock = threading.Lock()
        self._looking: threading.Event | None = None
        self._literal = host == "localhost" or _is_address(host)

    def known(self, seconds: float) -> bool:
        """Whether a look-up ended within `seconds`; a name that nobody knows is known to be so, and fails later."""
        if self._literal:
            return True
        with self._lock:
            if self._looking is None:
                self._looking = threading.Event()
                threading.Thread(target=self._look_up, args=(self._looking,), daemon=True).start()
            looking = self._looking
        return looking.wait(seconds)

    def _look_up(self, done: threading.Event) -> None:
        try:
            self.addresses = tuple({str(info[4][0]) for info in socket.getaddrinfo(self.host, None)})
        except OSError:
            self.addresses = ()  # the connection will meet the same, and say so
        finally:
            with self._lock:
                self._looking = None
            done.set()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
