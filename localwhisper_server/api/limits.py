"""Limits: how large and how slow a body may be, and how many requests and connections one address may have open.

A connection that sends a byte now and then costs its sender nothing, and would hold a place for hours.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localwhisper_client.shared.lan_ranges import LOOPBACK, Network, host_of, parse_address, within
from localwhisper_server.api.access_control import caller_of
from localwhisper_server.errors import TooLarge, TooManyRequests, TooSlow

# The longest pause in an upload, as in nginx.
PAUSE_SECONDS = 60.0
_CLAIM = "localwhisper.claim"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request.

    A body may have `max_upload` bytes. It may pause for `grace` seconds at the start, and for one second more for every
    `min_rate` bytes that arrive, but for no longer than PAUSE_SECONDS (or `grace`, if that is longer) at a time.
    `min_rate` 0: any rate. `per_address` is how many transcriptions one address may have open; 0: any number.
    """

    max_upload: int = 512 * 1024 * 1024
    min_rate: float = 1024.0
    grace: float = 15.0
    per_address: int = 0

    @property
    def longest_pause(self) -> float:
        """The most seconds that one pause of a body may last."""
        return max(PAUSE_SECONDS, self.grace)

    def pause_left(self, left: float, read: int, waited: float) -> float:
        """Return the seconds that the body may pause after `read` bytes came in `waited` seconds; at 0 it is too slow.

        Pure; `left` is what this returned before, at first `grace`.
        """
        if not self.min_rate:
            return self.longest_pause
        return min(self.longest_pause, left - waited + read / self.min_rate)

    def too_slow(self) -> TooSlow:
        """Return the error for a body that pauses too long."""
        return TooSlow(
            f"The request's body came too slowly: this server waits for at least {self.min_rate:.0f} bytes a second, "
            f"and no longer than {self.longest_pause:g} s for the next ones."
        )


def limited(receive: Receive, limits: Limits, clock: Callable[[], float]) -> Receive:
    """Return `receive` with the limits on a body's size and rate.

    Only the time spent waiting for the caller counts, not the time spent on the bytes. The messages after the body have
    no limit.

    Raises:
        TooLarge, TooSlow: from the returned function.

    """
    read, complete = 0, False
    left = limits.grace if limits.min_rate else limits.longest_pause

    async def receive_limited() -> Message:
        nonlocal read, left, complete
        if complete:
            return await receive()
        started = clock()
        message: Message | None = None
        with anyio.move_on_after(max(0.0, left)):
            message = await receive()
        if message is None:
            raise limits.too_slow()
        size = len(message.get("body", b""))
        read += size
        if read > limits.max_upload:
            raise TooLarge(limits.max_upload, read)
        complete = not message.get("more_body", False)
        left = limits.pause_left(left, size, clock() - started)
        if not complete and left <= 0:
            raise limits.too_slow()
        return message

    return receive_limited


class RequestLimits:
    """ASGI middleware that holds each body to the limits, and counts the transcriptions that each address has open.

    `retry_after` estimates the seconds until an address over its limit may try again.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        *,
        retry_after: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._limits = limits
        self._retry_after = retry_after
        self._clock = clock
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Limit one request.

        Raises:
            TooLarge: it announces a body over the limit.

        """
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        limit = self._limits.max_upload
        for announced in Headers(scope=scope).getlist("content-length"):
            if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
                raise TooLarge(limit, int(announced[:20]))
        address = caller_of(scope)
        host = None if address is None or address.is_loopback else host_of(address)
        claimed = False

        def claim() -> None:
            nonlocal claimed
            if host is None or not self._limits.per_address:
                return
            if self._open[host] >= self._limits.per_address:
                raise TooManyRequests(self._limits.per_address, retry_after=self._retry_after())
            self._open[host] += 1
            claimed = True

        scope[_CLAIM] = claim
        try:
            # The messages of a WebSocket have limits of their own.
            body = scope["type"] == "http"
            await self._app(scope, limited(receive, self._limits, self._clock) if body else receive, send)
        finally:
            if claimed and host is not None:
                self._open[host] -= 1
                if not self._open[host]:
                    del self._open[host]  # otherwise it would keep every address that ever called


def claim_share(scope: Scope) -> None:
    """Count this request, until its answer is sent, among those that its address has open.

    Every route that leads to the model calls this; a middleware that goes by paths could miss a spelling of one.

    Raises:
        TooManyRequests: the address has as many as it may have.

    """
    scope[_CLAIM]()


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections are held: in `total`, and of one address, unless it is in one of the `unlimited` ranges."""

    total: int = 2048
    per_address: int = 256
    unlimited: Sequence[Network] = LOOPBACK

    def refusal(self, peer: str, peers: Sequence[str]) -> str | None:
        """Say why `peer` may have no further connection beside those of `peers`; None if it may. Pure."""
        if len(peers) >= self.total:
            return f"{self.total} connections are open"
        address = parse_address(peer)
        # Counting by host takes time, and is needless while fewer are open in all.
        if len(peers) < self.per_address or address is None or within(address, self.unlimited):
            return None
        host = host_of(address)
        known = (other for other in map(parse_address, peers) if other is not None)
        if sum(host_of(other) == host for other in known) < self.per_address:
            return None
        return f"{self.per_address} connections of {host} are open"
