"""Being started, watched and stopped: what systemd is told, when the engine counts as stuck, and how a server leaves.

The protocol is sd_notify(3): lines of text in a datagram to the socket that NOTIFY_SOCKET names.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from types import FrameType
from typing import Any, Protocol

import uvicorn

from localwhisper_server.errors import Busy

logger = logging.getLogger(__name__)

# Where no watchdog says how patient it is.
WATCHDOG_SECONDS = 240.0
# The part of the watchdog's time after which it is petted, and after which a batch counts as stuck.
CHECKS_PER_WATCHDOG = 4
PATIENCE_PER_WATCHDOG = 0.5
# So many batches in a row that give nothing are the engine's fault: OpenAI's SDK sends a file that fails three times.
FAILURES_IN_A_ROW = 4
# After the drain, how long answers may take to get out before their connections are cut.
LAST_WORDS_SECONDS = 3
# None on Windows.
SIGHUP: Any = getattr(signal, "SIGHUP", None)
# More open files than this server has a use for.
MOST_FILES = 65_536


def raise_file_limit() -> int:
    """Let this process open as many files as its user may, and return how many that are, at most MOST_FILES."""
    if sys.platform == "win32":
        return MOST_FILES  # sockets are not counted there
    import resource  # noqa: PLC0415 - Windows has none

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (MOST_FILES if limit == resource.RLIM_INFINITY else min(limit, MOST_FILES) for limit in limits)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, limits[1]))
        except (OSError, ValueError):  # macOS allows less than it says
            return soft
    return hard


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


class Watched(Protocol):
    """What is looked at to see whether an engine lives."""

    @property
    def requests(self) -> int:
        """How many requests are open."""

    @property
    def running_seconds(self) -> float | None:
        """How long the batch in flight has been running; None where there is none."""

    @property
    def failures(self) -> int:
        """How many batches in a row, up to the last, gave nothing but faults of the engine."""


class SelfTest:
    """Says whether the engine is well, by its work, or by a test where it has none.

    `test` sends something through the model. It is run when the last inference failed, and whenever there is nothing
    else to judge by if `always`. Whatever takes longer than `patience` seconds is stuck.
    """

    def __init__(
        self, engine: Watched, test: Callable[[], Awaitable[None]], *, patience: float, always: bool = False
    ) -> None:
        self._engine = engine
        self._test = test
        self._patience = patience
        self._always = always
        self._failed = False

    @property
    def failing(self) -> bool:
        """Whether the engine is at fault, and not one recording: its test or many batches in a row have failed."""
        failures = self._engine.failures
        return failures >= FAILURES_IN_A_ROW or (failures > 0 and self._failed)

    @property
    def stuck(self) -> bool:
        """Whether the batch in flight has taken too long."""
        return (self._engine.running_seconds or 0.0) > self._patience

    async def well(self) -> bool:
        """Look, and test where there is reason to."""
        if self.stuck:
            return False
        if self._engine.requests or self._engine.running_seconds is not None:
            return not self.failing
        if not self._engine.failures and not self._always:
            return True
        self._failed = False
        try:
            await asyncio.wait_for(self._test(), self._patience)
        except Busy:
            pass  # somebody else's work, or somebody else's memory; a restart would help neither
        except Exception:  # noqa: BLE001 - the engine logs what it was; TimeoutError among them
            self._failed = True
        return not self._failed


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


class Draining(Protocol):
    """What is stopped."""

    @property
    def open_requests(self) -> int:
        """How many requests wait or run."""

    def drain(self, seconds: float) -> None:
        """Take nothing new, and send away what could not be finished in so many seconds."""

    def give_up(self) -> None:
        """Send away whatever still waits."""


class Server(uvicorn.Server):
    """uvicorn, but a stop lets what was accepted finish, within `drain` seconds, and a second one does not.

    SIGTERM stops, as does SIGHUP: a terminal that is closed. Another SIGTERM, or Ctrl-C at any time, ends the process
    on the spot, by `leave`; another SIGHUP does not, for shells send it twice.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        backend: Draining,
        notifier: Notifier,
        *,
        drain: float,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = int(drain) + LAST_WORDS_SECONDS
        self._backend = backend
        self._notifier = notifier
        self._drain = drain
        self._leave = leave

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin to stop, or leave."""
        if sig == signal.SIGINT:
            self._leave(128 + sig)
        elif self.should_exit and sig != SIGHUP:
            self._leave(0)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Take the signals that stop, SIGHUP among them unless it is ignored, as nohup has it."""
        taken = SIGHUP is not None and threading.current_thread() is threading.main_thread()
        before = signal.getsignal(SIGHUP) if taken else signal.SIG_IGN
        if before != signal.SIG_IGN:
            signal.signal(SIGHUP, self.handle_exit)
        try:
            with super().capture_signals():
                yield
        finally:
            if before != signal.SIG_IGN:
                signal.signal(SIGHUP, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; say in one line what keeps connections from being taken."""
        asyncio.get_running_loop().set_exception_handler(_loop_failure)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests finish as long as there is time, then send them away."""
        if running := self._backend.open_requests:
            logger.info("stopping; %d request(s) have %g s to finish", running, self._drain)
        else:
            logger.info("stopping")
        self._notifier.stopping(self._drain + 2 * LAST_WORDS_SECONDS)
        self._backend.drain(self._drain)
        giving_up = asyncio.get_running_loop().call_later(self._drain, self._backend.give_up)
        try:
            await super().shutdown(sockets)
        finally:
            giving_up.cancel()


def _loop_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what no code of ours caught: a lack of open files in a line, all else as asyncio does."""
    failure = context.get("exception")
    if isinstance(failure, OSError) and failure.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
        # By asyncio's logger, which says nothing twice a minute.
        logging.getLogger("asyncio").error("no connection can be taken at the moment: %s", failure.strerror)
    else:
        loop.default_exception_handler(context)
