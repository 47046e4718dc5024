"""Threads: blocking work in the background, and what must be made anew after a fork.

A thread that waits for a name server cannot be stopped. The call goes on without it, and the thread ends later.

A fork copies one thread only. In the child, a lock that another thread held stays locked for ever, and another thread's
work never ends. A connection would be shared with the parent, and each could read the other's answer.
"""

from __future__ import annotations

import os
import threading
import weakref
from concurrent import futures
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
P = ParamSpec("P")

# `wait_async` polls, since asyncio and trio share no way to wait for a future: seconds between two looks.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05

_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def renewed(method: Callable[[], None]) -> None:
    """Call a bound method now, and again in each forked child, for as long as its object lives; one for an object."""
    bound: Any = method
    _renewals[bound.__self__] = bound.__func__
    method()


def _in_child() -> None:
    for owner, method in list(_renewals.items()):
        method(owner)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_in_child)


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
    """Work that runs once at a time: calls that come while it runs share its result."""

    def __init__(self, work: Callable[P, T]) -> None:
        self._work = work
        renewed(self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._running: Future[T] | None = None

    def start(self, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start the work, or join the run in progress, whatever its arguments."""
        with self._lock:
            if self._running is None or self._running.done():
                self._running = start(self._work, *args, **kwargs)
            return self._running


def wait(future: Future[Any], seconds: float | None) -> bool:
    """Wait for at most so many seconds (`None`: as long as it takes); return whether the future is done."""
    return bool(futures.wait([future], seconds).done)


async def wait_async(future: Future[Any], seconds: float | None) -> bool:
    """Do as `wait` does, under asyncio and trio, without a waiting thread."""
    pause = _FIRST_PAUSE
    with anyio.move_on_after(seconds):
        while not future.done():
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    return future.done()
