"""Looks a host's name up without waiting longer than a call has time.

A PC that is switched off is often asked for by mDNS, which gives up after five seconds. No timeout of the HTTP library
covers that in a synchronous call, and in an asynchronous one each look-up that is given up still holds a thread.
"""

from __future__ import annotations

import ipaddress
import socket
from concurrent.futures import Future
from functools import partial

from localwhisper_client._background import OneAtATime

# One look-up at a time for each name: calls that come meanwhile wait for the same one.
_look_ups: dict[str, OneAtATime[[], tuple[str, ...]]] = {}


def look_up(host: str) -> Future[tuple[str, ...]]:
    """Return the host's addresses, when they are known; the future raises `OSError` where the name has none.

    An address and `localhost` need no look-up, and stay as they are.
    """
    if host == "localhost" or _is_address(host):
        known: Future[tuple[str, ...]] = Future()
        known.set_result((host,))
        return known
    if host not in _look_ups:
        _look_ups.setdefault(host, OneAtATime(partial(_addresses, host)))
    return _look_ups[host].start()


def _addresses(host: str) -> tuple[str, ...]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
