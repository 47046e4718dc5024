"""Reports to systemd: that the server is ready, works, or stops.

The protocol is sd_notify(3): lines of text in a datagram to the socket that NOTIFY_SOCKET names.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping

logger = logging.getLogger(__name__)

# The watchdog's period in the service's unit, and that of the checks where there is no watchdog. Longer than any batch,
# since the server notifies the watchdog only after a self-test that goes through the model.
WATCHDOG_SECONDS = 300
# Reports to the watchdog in each of its periods.
CHECKS_PER_WATCHDOG = 4


def notify(address: str | None, state: str) -> None:
    """Send a state to systemd if it started this process; never raises, never blocks. `address` is NOTIFY_SOCKET."""
    if not address:
        return
    # A leading @ stands for the zero byte of an abstract socket's name.
    address = f"\0{address[1:]}" if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        sending.settimeout(0)
        sending.sendto(state.encode(), address)


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the watchdog's period, within which it expects a report; None if it does not watch this process."""
    watched = environ.get("WATCHDOG_PID", str(pid))
    period = environ.get("WATCHDOG_USEC", "")
    if watched != str(pid) or not period.isdecimal() or not int(period):
        return None
    return int(period) / 1e6


async def watch(
    well: Callable[[], Awaitable[bool]],
    notify: Callable[[str], object],
    *,
    seconds: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Call `well` every so many seconds, and report to the watchdog if it is true.

    This also shows that the event loop works, which runs it.
    """
    while True:
        await sleep(seconds)
        if await well():
            notify("WATCHDOG=1")
        else:
            logger.error("the engine failed its self-test")
