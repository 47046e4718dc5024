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


class Notifier:
    """Reports to systemd if it started this process; never raises, never blocks."""

    def __init__(self, address: str | None) -> None:
        # A leading @ stands for the zero byte of an abstract socket's name.
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address

    def ready(self) -> None:
        """Report that requests are served."""
        self._send("READY=1")

    def alive(self) -> None:
        """Report to the watchdog that the server works."""
        self._send("WATCHDOG=1")

    def stopping(self, seconds: float) -> None:
        """Report that the server stops, and ask for so many seconds to do it."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.settimeout(0)
            sending.sendto(text.encode(), self._address)


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the watchdog's period, within which it expects a report; None if it does not watch this process."""
    watched = environ.get("WATCHDOG_PID", str(pid))
    period = environ.get("WATCHDOG_USEC", "")
    if watched != str(pid) or not period.isdecimal() or not int(period):
        return None
    return int(period) / 1e6


async def watch(
    well: Callable[[], Awaitable[bool]],
    notifier: Notifier,
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
            notifier.alive()
        else:
            logger.error("the engine failed its self-test")
