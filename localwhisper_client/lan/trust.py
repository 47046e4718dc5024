"""Whether a host is on the LAN, where its name has to be looked up to tell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from localwhisper_client import _background
from localwhisper_client.events import log
from localwhisper_client.lan import names
from localwhisper_client.shared import lan_ranges

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT = 60.0
"""Seconds for which a look-up counts: a call does not pay for one each time."""


class Trust:
    """What names were found to mean; shared by threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[bool, float]] = {}
        self._noted: set[str] = set()

    def on_lan(self, host: str, seconds: float) -> bool | None:
        """Whether a host is on the LAN; None where its name was not found within `seconds`. May block that long."""
        here = lan_ranges.settled(host)
        if here is not None:
            return here
        known, until = self._known.get(host, (False, 0.0))
        if self._clock() < until:
            return known
        look_up = names.look_up(host)
        if not _background.wait(look_up, seconds) or look_up.exception() is not None:
            return None
        addresses = [lan_ranges.parse_address(each) for each in look_up.result()]
        here = lan_ranges.resolved(host, [address for address in addresses if address is not None])
        self._known[host] = (here, self._clock() + KEPT)
        return here

    def note(self, response: Any) -> None:
        """Say in the log, once, that an answer came from outside of the LAN: so did the user name that server."""
        try:
            peer, *_ = response.extensions["network_stream"].get_extra_info("server_addr")
        except Exception:  # noqa: BLE001 - a connection that is gone by now; each library has errors of its own for it
            return
        address = lan_ranges.parse_address(str(peer))
        host = str(response.request.url.host)
        if address is not None and not lan_ranges.on_lan(address) and host not in self._noted:
            self._noted.add(host)
            log.warning("%s (%s) is not on the LAN, and is sent audio because it is named as the server", host, peer)
