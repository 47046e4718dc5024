"""How a request's body may come: at most so many bytes, and neither slowly nor with long pauses. Counted as it arrives.

A connection that sends a byte now and then costs its sender nothing and holds a place here for hours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from localwhisper_server.api.asgi import Message, Receive
from localwhisper_server.errors import TooLarge, TooSlow

# The longest pause in an upload, as nginx has it. A fast start earns no longer one.
PAUSE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Floor:
    """The slowest upload that is waited for: `rate` bytes a second after `grace` seconds; 0 sets no rate. Pure.

    The server waits on credit: `grace` seconds at the start, and one more for every `rate` bytes, but never more than
    PAUSE_SECONDS (or `grace`, where that is longer) at a time.
    """

    rate: float = 1024.0
    grace: float = 15.0

    def credit(self, credit: float, read: int, waited: float) -> float:
        """Return the seconds of credit that are left after `read` bytes came in `waited` seconds; at 0 it is over."""
        most = max(PAUSE_SECONDS, self.grace)
        return min(most, credit - waited + read / self.rate) if self.rate else most

    @property
    def refusal(self) -> TooSlow:
        """What a slower one is answered with."""
        return TooSlow(
            f"The request's body came too slowly: this server waits for at least {self.rate:.0f} bytes a second, and "
            f"no longer than {max(PAUSE_SECONDS, self.grace):g} s for the next ones."
        )


def limited(receive: Receive, *, limit: int, floor: Floor, clock: Callable[[], float]) -> Receive:
    """Pass the messages of a body on until it grows over `limit` bytes, which a chunked one announces to nobody.

    Only the time spent waiting for the caller counts against it, not what is done with the bytes meanwhile. After the
    body, messages are waited for without an end.

    Raises:
        TooLarge, TooSlow: from the returned function.

    """
    read, complete = 0, False
    credit = floor.grace if floor.rate else floor.credit(0.0, 0, 0.0)

    async def receiving() -> Message:
        nonlocal read, credit, complete
        if complete:
            return await receive()
        started = clock()
        message: Message | None = None
        with anyio.move_on_after(max(0.0, credit)):
            message = await receive()
        if message is None:
            raise floor.refusal
        size = len(message.get("body", b""))
        read += size
        if read > limit:
            raise TooLarge(limit, read)
        complete = not message.get("more_body", False)
        credit = floor.credit(credit, size, clock() - started)
        if not complete and credit <= 0:
            raise floor.refusal
        return message

    return receiving
