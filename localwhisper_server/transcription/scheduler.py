"""Work handed to the engine, batch by batch: the threads around `turns.Queue`, which decides."""

import contextlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from localwhisper_server import observer
from localwhisper_server.errors import Busy, EngineFailed, ServerError
from localwhisper_server.transcription.queue import FairQueue, Item
from localwhisper_server.types import BatchLimits

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# A stranger's machine, before anything was measured: seconds of sound decoded in a second.
IDLE_CHECK_SECONDS = 0.01
FIRST_SPEED = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class _Batch(Generic[Item]):
    """A batch in flight."""

    items: list[Item]
    futures: list[Future[Any]]
    since: float

    @property
    def seconds(self) -> float:
        return sum(item.seconds for item in self.items)

    @property
    def frames(self) -> int:
        return max(item.frames for item in self.items)


class _Asked(Future[Any]):
    """Knows since when it waits, and for which request."""

    def __init__(self, since: float) -> None:
        super().__init__()
        self.since = since
        self.request_id = observer.request_id.get()


class Ticket(Generic[Item, Result]):
    """An admitted request's way to hand in chunks. Close it when the request ends, however it ends."""

    def __init__(self, scheduler: "Scheduler[Item, Result]", number: int) -> None:
        self._scheduler = scheduler
        self._number = number

    def submit(self, items: Sequence[Item], *, first: bool = False) -> "list[Future[Result]]":
        """FairQueue chunks, so that they may share a batch; each future gives a result, or a ServerError.

        `first` puts them before the request's others: what is left of earlier ones.

        Cancelling one drops its chunk. They are cancelled already where the ticket or the scheduler is closed.
        """
        return self._scheduler._submit(self._number, items, first=first)  # noqa: SLF001 - the ticket is the scheduler's own face

    def close(self) -> None:
        """Leave the queue with everything that still waits."""
        self._scheduler._leave(self._number)  # noqa: SLF001 - as above


class Scheduler(Generic[Item, Result]):
    """Threads that feed batches to `run`, which returns one result per chunk; as many as `run` has room for at once.

    Of several, one is kept from chunks above the share (a full window), which take seconds, as long as others wait.

    `max_wait` is the longest wait in seconds that a new request is let in for; `ahead` estimates what it waits before
    it hands in its first chunk. `idle` is called from a thread while nothing waits or runs, with the seconds since the
    last batch, and returns after how many more it wants to be called again, None for not before there was work.
    `waited` is called with the seconds that each chunk waited for its batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        capacity: int,
        limits: BatchLimits,
        clock: Callable[[], float],
        max_wait: float = float("inf"),
        ahead: Callable[[], float] = lambda: 0.0,
        idle: Callable[[float], float | None] | None = None,
        waited: Callable[[float], None] | None = None,
        workers: int = 1,
    ) -> None:
        self._run = run
        self._clock = clock
        self._max_wait = max_wait
        self._idle = idle
        self._waited = waited
        self._ahead = ahead
        self._queue: FairQueue[Item] = FairQueue(capacity=capacity, limits=limits)
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._refusal: ServerError | None = None
        self._in_flight: list[_Batch[Item]] = []
        self._last = time.monotonic()
        self._failures = 0
        self._speed = FIRST_SPEED / workers  # of one worker
        self._threads = [
            threading.Thread(target=self._work, name=f"localwhisper-engine-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def requests(self) -> int:
        """How many requests are open."""
        with self._changed:
            return self._queue.requests

    @property
    def full(self) -> bool:
        """Whether one more request would be turned away for want of room."""
        with self._changed:
            return self._queue.full

    @property
    def running_seconds(self) -> float | None:
        """How long the batch in flight has been running, of several the first; None where there is none."""
        with self._changed:
            return max((self._clock() - batch.since for batch in self._in_flight), default=None)

    @property
    def failures(self) -> int:
        """How many batches in a row, up to the last, gave nothing but faults of the engine."""
        return self._failures

    @property
    def speed(self) -> float:
        """Seconds of sound decoded in a second: a running estimate."""
        return self._speed * len(self._threads)

    @property
    def queue_seconds(self) -> float:
        """Estimate how long a request that came now would wait for its first chunk's turn, in seconds."""
        with self._changed:
            return self._wait()

    def set_limits(self, limits: BatchLimits) -> None:
        """Change how large a batch may be."""
        with self._changed:
            self._queue.limits = limits

    def admit(self, *, bulk: bool = False) -> Ticket[Item, Result]:
        """Open a request.

        Raises:
            Busy: the queue is full, or the wait longer than it may be; `retry_after` estimates when it will not be.

        """
        number = next(self._numbers)
        with self._changed:
            self._require_room()
            self._queue.admit(number, bulk=bulk)
        return Ticket(self, number)

    def require_room(self) -> None:
        """Raise Busy where `admit` would, for who wants to know before it has anything to hand in."""
        with self._changed:
            self._require_room()

    def _require_room(self) -> None:
        wait = self._wait()
        if wait > self._max_wait:
            raise Busy(
                f"The server is busy: the wait is about {wait:.0f} s. Try again later.",
                retry_after=wait - self._max_wait,
            )
        if self._queue.full:
            raise Busy("The server is busy: its queue is full. Try again later.", retry_after=wait)

    def send_away(self, refusal: ServerError, *, later_than: float) -> None:
        """Fail the requests that have not begun and would not be through in so many seconds, by the present speed."""
        with self._changed:
            running = sum(batch.seconds for batch in self._in_flight)
            late = self._queue.late(later_than * self.speed - running)
            left = [future for key in late for future in self._queue.leave(key)]
        _fail(left, refusal)

    def refuse(self, refusal: ServerError) -> None:
        """Fail whatever waits or runs, and whatever will still be handed in; nobody hears of the batch in flight."""
        with self._changed:
            self._refusal = refusal
            left = self._queue.clear() + [future for batch in self._in_flight for future in batch.futures]
        _fail(left, refusal)

    def close(self, timeout: float | None = None) -> bool:
        """Stop after what is in flight, cancelling what waits; False if it still runs after `timeout` seconds."""
        with self._changed:
            self._closed = True
            left = self._queue.clear()
            self._changed.notify_all()
        for future in left:
            future.cancel()
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _submit(self, number: int, items: Sequence[Item], *, first: bool) -> "list[Future[Result]]":
        now = self._clock()
        futures: list[Future[Result]] = [_Asked(now) for _ in items]
        with self._changed:
            refusal = self._refusal
            taken = refusal is None and self._queue.put(number, list(zip(items, futures, strict=True)), first=first)
            self._changed.notify_all()
        if refusal is not None:
            _fail(futures, refusal)
        elif not taken:
            for future in futures:
                future.cancel()  # nobody would ever answer it
        return futures

    def _leave(self, number: int) -> None:
        with self._changed:
            left = self._queue.leave(number)
        for future in left:
            future.cancel()

    def _wait(self) -> float:
        ahead = self._ahead()
        # A worker that is free takes who comes now.
        running = sum(batch.seconds for batch in self._in_flight)
        if not self._queue and len(self._in_flight) < len(self._threads):
            return ahead
        return ahead + (running + self._queue.seconds_ahead()) / self.speed

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            with observer.on_behalf_of(future.request_id for future in batch.futures if isinstance(future, _Asked)):
                outcomes = self._outcomes(batch.items)
            failed = all(isinstance(outcome, EngineFailed) for outcome in outcomes)
            self._failures = self._failures + 1 if failed else 0
            for future, outcome in zip(batch.futures, outcomes, strict=True):
                # A caller who left meanwhile has cancelled nothing: a future that runs cannot be. It may be refused.
                with contextlib.suppress(InvalidStateError):
                    if isinstance(outcome, BaseException):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
            took = max(self._clock() - batch.since, 1e-6)
            with self._changed:
                self._in_flight.remove(batch)
                self._last = time.monotonic()  # as the wait for it counts
                # A running mean over the last few batches follows a machine that gets busier or idle. What failed says
                # nothing: a device that refuses everything would be the fastest of all.
                if not all(isinstance(outcome, BaseException) for outcome in outcomes):
                    self._speed += (max(batch.seconds / took, 1e-3) - self._speed) / 4

    def _next(self) -> _Batch[Item] | None:
        """Wait for the next batch of chunks that somebody still wants; None when closed."""
        seconds: float | None = 0.0
        while True:
            with self._changed:
                if self._changed.wait_for(self._needed, seconds):
                    if self._closed:
                        return None
                    light = self._guarded and self._queue.ready(light=True)
                    entries = self._queue.take(most=self._part(), light=light)
                    wanted = [entry for entry in entries if entry[1].set_running_or_notify_cancel()]
                    if wanted:
                        items, futures = map(list, zip(*wanted, strict=True))
                        batch = _Batch(items, futures, self._clock())
                        self._in_flight.append(batch)
                        self._tell_waits(batch)
                        return batch
                    continue
                since = None if self._in_flight else time.monotonic() - self._last
            # Without the lock: it may take its time, and callers are being admitted. A worker that is at work does
            # this when it is through.
            seconds = None if since is None else self._be_idle(since)

    def _part(self) -> int:
        """Return how many chunks one worker may take: no more than its part.

        Of what waits, shared by the workers that are idle; and of what waits or runs, shared by all, since those that
        run will soon be idle, too.
        """
        idle = len(self._threads) - len(self._in_flight)
        running = sum(len(batch.items) for batch in self._in_flight)
        waiting = len(self._queue)
        return min(math.ceil(waiting / idle), max(1, (waiting + running) // len(self._threads)))

    def _needed(self) -> bool:
        return self._closed or self._queue.ready()

    @property
    def _guarded(self) -> bool:
        """Whether the next batch had better not take long, since others do: one worker is soon free for who comes."""
        heavy = [batch for batch in self._in_flight if batch.frames > self._queue.limits.share]
        return 0 < len(heavy) >= len(self._threads) - 1

    def _tell_waits(self, batch: _Batch[Item]) -> None:
        if self._waited is not None:
            for future in batch.futures:
                if isinstance(future, _Asked):
                    self._waited(batch.since - future.since)

    def _be_idle(self, seconds: float) -> float | None:
        try:
            again = self._idle(seconds) if self._idle is not None else None
        except Exception:  # the thread has to live: the next batch will meet whatever is wrong
            logger.exception("could not go idle")
            return None
        return None if again is None else max(again, IDLE_CHECK_SECONDS)

    def _outcomes(self, items: Sequence[Item]) -> "Sequence[Result | ServerError]":
        """Run a batch; if it fails, each chunk alone, so that one bad chunk does not take its neighbours along."""
        try:
            outcomes = self._run(items)
        except ServerError as failure:
            return [failure for _ in items]
        except Exception:
            logger.exception("a batch of %d failed", len(items))
        else:
            if len(outcomes) == len(items):
                return outcomes
            logger.error("a batch of %d gave %d results", len(items), len(outcomes))
        if len(items) == 1:
            return [EngineFailed()]
        return [outcome for item in items for outcome in self._outcomes([item])]


def _fail(futures: Sequence[Future[Any]], failure: ServerError) -> None:
    for future in futures:
        with contextlib.suppress(InvalidStateError, RuntimeError):  # answered already, or in this very moment
            if future.running() or future.set_running_or_notify_cancel():
                future.set_exception(failure)
