"""Blocking work on a thread of its own, so that a call waits for it no longer than it has time.

Nothing can stop a thread that waits for a name server. The call goes on without it, and the thread ends when it may.
"""

from __future__ import annotations

import threading
from concurrent import futures
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import anyio

from localwhisper_client import _forks

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
P = ParamSpec("P")

# Seconds between two looks at a future: there is no way to wait for one that asyncio and trio share.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


def start(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Start the work on a new daemon thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - raised where the future is read
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="localwhisper-background", daemon=True).start()
    return future


class OneAtATime(Generic[P, T]):
    """Work that runs once at a time: whoever asks while it runs shares its result. In a forked child it starts anew."""

    def __init__(self, work: Callable[P, T]) -> None:
        self._work = work
        _forks.renewed(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._running: Future[T] | None = None

    def start(self, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start the work, or join the run that is under way, whatever its arguments."""
        with self._lock:
            if self._running is None or self._running.done():
                self._running = start(self._work, *args, **kwargs)
            return self._running


def wait(future: Future[Any], seconds: float | None) -> bool:
    """Wait for as many seconds at most (`None`: as long as it takes); return whether the future is done."""
    return bool(futures.wait([future], seconds).done)


async def wait_async(future: Future[Any], seconds: float | None) -> bool:
    """Do as `wait` does, under asyncio and trio, without a thread that waits."""
    pause = _FIRST_PAUSE
    with anyio.move_on_after(seconds):
        while not future.done():
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    return future.done()
