"""Name resolution: a host's addresses, found within a call's time, and whether they are on the LAN.

A PC that is off is often asked for by mDNS, which gives up after five seconds. The HTTP library has no timeout for that
in a sync call, and in an async call each abandoned look-up holds a thread.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from localwhisper_client import _background
from localwhisper_client._http import http
from localwhisper_client.events import log
from localwhisper_client.shared import lan_ranges

if TYPE_CHECKING:
    from collections.abc import Callable

REMEMBERED = 60.0
"""Seconds for which `Hosts` remembers whether a name is on the LAN."""

# Calls that need a name while it is being looked up share that look-up.
_look_ups: dict[str, _background.OneAtATime[[], tuple[str, ...]]] = {}


def look_up(host: str) -> Future[tuple[str, ...]]:
    """Look a host's addresses up in the background; the future raises `OSError` if it has none.

    An address and `localhost` need no look-up and are returned as they are.
    """
    if host == "localhost" or _is_address(host):
        known: Future[tuple[str, ...]] = Future()
        known.set_result((host,))
        return known
    if host not in _look_ups:
        _look_ups.setdefault(host, _background.OneAtATime(partial(_addresses, host)))
    return _look_ups[host].start()


def not_in_time(host: str) -> Exception:
    """Return the HTTP library's `ConnectTimeout` for a name that was not found in time."""
    error: Exception = http.ConnectTimeout(f"the name {host} was not found in time")
    return error


def _addresses(host: str) -> tuple[str, ...]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Hosts:
    """Says which hosts are on the LAN, and remembers it; thread-safe. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[bool, float]] = {}
        self._warned: set[str] = set()

    def on_lan(self, url: str, seconds: float) -> bool | None:
        """Whether a URL's host is on the LAN; `None` if its name was not found. Blocks for `seconds` at most."""
        host = urlsplit(url).hostname or ""
        on_lan = lan_ranges.settled(host)
        if on_lan is not None:
            return on_lan
        known, until = self._known.get(host, (False, 0.0))
        if self._clock() < until:
            return known
        lookup = look_up(host)
        if not _background.wait(lookup, seconds) or lookup.exception() is not None:
            return None
        addresses = [lan_ranges.parse_address(each) for each in lookup.result()]
        on_lan = lan_ranges.resolved(host, [address for address in addresses if address is not None])
        self._known[host] = (on_lan, self._clock() + REMEMBERED)
        return on_lan

    def warn_if_outside(self, response: Any) -> None:
        """Log once for each host if its answer came from outside the LAN. The user named it, so it is allowed."""
        try:
            peer, *_ = response.extensions["network_stream"].get_extra_info("server_addr")
        except Exception:  # noqa: BLE001 - the connection is closed; each network library has its own error for that
            return
        address = lan_ranges.parse_address(str(peer))
        host = str(response.request.url.host)
        if address is not None and not lan_ranges.on_lan(address) and host not in self._warned:
            self._warned.add(host)
            log.warning("%s (%s) is not on the LAN; it gets audio because it is set as the local server", host, peer)


def needs_look_up(url: str) -> bool:
    """Whether `Hosts.on_lan` may block for this URL."""
    return lan_ranges.settled(urlsplit(url).hostname or "") is None
