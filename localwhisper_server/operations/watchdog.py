"""Being started, watched and stopped: what systemd is told, when the engine counts as stuck, and how a server leaves.

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
# How often the watchdog is told that all is well, in each of its periods.
CHECKS_PER_WATCHDOG = 4


class Notifier:
    """Tells systemd, where there is one; never fails, never blocks."""

    def __init__(self, address: str | None) -> None:
        # A leading @ stands for the zero byte of an abstract socket.
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address

    def ready(self) -> None:
        """Say that requests are served."""
        self._send("READY=1")

    def alive(self) -> None:
        """Pet the watchdog."""
        self._send("WATCHDOG=1")

    def stopping(self, seconds: float) -> None:
        """Say that this ends within so many seconds, and ask to be given them."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def _send(self, text: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.settimeout(0)
            sending.sendto(text.encode(), self._address)


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """Return how often systemd wants to hear from this process; None where it does not watch it."""
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
    """Pet the watchdog every so many seconds as long as all is well: `well`, and this event loop, which runs it."""
    while True:
        await sleep(seconds)
        if await well():
            notifier.alive()
        else:
            logger.error("the engine does not pass its test")
