"""How a request's body may come: at most so many bytes, and not slower than a floor. Counted while it arrives.

A connection that sends a byte now and then costs its sender nothing and holds a place here for hours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from localwhisper_server.asgi import Message, Receive
from localwhisper_server.errors import TooLarge, TooSlow


@dataclass(frozen=True, slots=True)
class Floor:
    """The slowest upload that is waited for: `rate` bytes a second on average, after `grace` seconds. Pure."""

    rate: float = 1024.0
    grace: float = 15.0

    def patience(self, read: int, waited: float) -> float:
        """Return how many more seconds to wait for the next bytes, at or below zero where it is over.

        `read` bytes have come in `waited` seconds.
        """
        if not self.rate:
            return float("inf")
        return self.grace + read / self.rate - waited

    @property
    def refusal(self) -> TooSlow:
        """What a slower one is answered with."""
        return TooSlow(
            f"The request's body came too slowly: this server waits for at least {self.rate:.0f} bytes a second."
        )


def limited(receive: Receive, *, limit: int, floor: Floor, clock: Callable[[], float]) -> Receive:
    """Pass the messages of a body on until it grows over `limit` bytes, which a chunked one announces to nobody.

    Only the time spent waiting for the caller counts against it, not what is done with the bytes meanwhile. After the
    body, messages are waited for without an end.

    Raises:
        TooLarge, TooSlow: from the returned function.

    """
    read, waited, complete = 0, 0.0, False

    async def receiving() -> Message:
        nonlocal read, waited, complete
        if complete:
            return await receive()
        started = clock()
        message: Message | None = None
        with anyio.move_on_after(max(0.0, floor.patience(read, waited))):
            message = await receive()
        waited += clock() - started
        if message is None:
            raise floor.refusal
        read += len(message.get("body", b""))
        if read > limit:
            raise TooLarge(limit, read)
        complete = not message.get("more_body", False)
        if not complete and floor.patience(read, waited) <= 0:
            raise floor.refusal
        return message

    return receiving
