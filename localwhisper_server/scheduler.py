"""Who is decoded next: admission, fairness and batches. A pure core and the thread around it.

`Queue` decides; `Scheduler` owns the one thread that calls the engine, so the engine is never called twice at once.
"""

import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from localwhisper_server.errors import Busy, EngineFailed, ServerError

logger = logging.getLogger(__name__)


class Work(Protocol):
    """What the scheduler needs to know of a chunk."""

    @property
    def frames(self) -> int:
        """What the encoder is given, in frames of 10 ms: the cost."""

    @property
    def seconds(self) -> float:
        """How much sound it is."""


Item = TypeVar("Item", bound=Work)
Result = TypeVar("Result")

# A chunk joins a batch whose first chunk is not much shorter: all are encoded with the longest window among them.
WIDEST = 1.5
# So many batches a request may be passed over before it comes first, whatever came after it.
PATIENCE = 4
FRAMES_PER_SECOND = 100
# A stranger's machine, before anything was measured: seconds of sound decoded in a second.
FIRST_SPEED = 5.0


class Full(Exception):
    """The queue holds as many requests as it may."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a batch may be: in chunks, in frames in all, and in frames of any one request.

    The share bounds how long a short message can be kept waiting by the batch in flight of an hour-long file.
    """

    items: int
    frames: int
    share: int


@dataclass(slots=True)
class _Open(Generic[Item]):
    """A request that was admitted and has not left."""

    bulk: bool
    served: bool = False
    waiting: deque[tuple[Item, Future[Any]]] = field(default_factory=deque)
    passed: int = 0


class Queue(Generic[Item]):
    """The waiting work of all open requests. Pure: no clock, no thread, no I/O.

    A request is admitted, hands in chunks in order, and leaves. Each batch begins with the first chunk of the request
    whose turn it is and is filled with chunks of others, in turn, that are not much longer. Turns: interactive before
    bulk; a new request before those already served, and of these the one served longest ago; but first the one passed
    over most often, where that was PATIENCE times or more. So a short message that comes while hour-long files are
    decoded is in the very next batch, and nobody is passed over more than PATIENCE times and once for each other.
    """

    def __init__(self, *, capacity: int, limits: Limits) -> None:
        self._capacity = capacity
        self.limits = limits
        # New ones in the order of their arrival, served ones in the order of their last turn.
        self._open: dict[Hashable, _Open[Item]] = {}

    def __len__(self) -> int:
        """Count the chunks that wait."""
        return sum(len(request.waiting) for request in self._open.values())

    @property
    def requests(self) -> int:
        """How many requests are open."""
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether as many requests are being served and waiting as may."""
        return len(self._open) >= self.limits.items + self._capacity

    def seconds_ahead(self) -> float:
        """Return the seconds of sound decoded before a request that came now: one turn of each that is open."""
        return sum(
            min(self.limits.share / FRAMES_PER_SECOND, sum(item.seconds for item, _ in request.waiting))
            for request in self._open.values()
            if not request.bulk
        )

    def admit(self, key: Hashable, *, bulk: bool = False) -> None:
        """Open a request.

        Raises:
            Full: as many are being served and waiting as may.

        """
        if self.full:
            raise Full
        self._open[key] = _Open(bulk)

    def put(self, key: Hashable, item: Item, future: Future[Any]) -> bool:
        """Add a chunk to an open request; False where that has left."""
        request = self._open.get(key)
        if request is None:
            return False
        request.waiting.append((item, future))
        return True

    def leave(self, key: Hashable) -> list[Future[Any]]:
        """Close a request and return the futures of what it had waiting."""
        request = self._open.pop(key, None)
        return [future for _, future in request.waiting] if request else []

    def clear(self) -> list[Future[Any]]:
        """Close all requests and return the futures of what they had waiting."""
        return [future for key in list(self._open) for future in self.leave(key)]

    def late(self, seconds: float) -> list[Hashable]:
        """Return the waiting requests, none of them begun, that are not through after so many seconds of sound."""
        ahead, late = 0.0, []
        for key in self._turns():
            request = self._open[key]
            ahead += sum(item.seconds for item, _ in request.waiting)
            if ahead > seconds and not request.served:
                late.append(key)
        return late

    def take(self) -> list[tuple[Item, Future[Any]]]:
        """Return the next batch, empty if nothing waits."""
        turns = self._turns()
        batch: list[tuple[Item, Future[Any]]] = []
        served: dict[Hashable, int] = {}  # frames of each request in this batch
        progress = True
        while progress:
            progress = False
            for key in turns:
                request = self._open[key]
                if request.waiting and self._fits(request.waiting[0][0], batch, served.get(key, 0)):
                    item, future = request.waiting.popleft()
                    batch.append((item, future))
                    served[key] = served.get(key, 0) + item.frames
                    progress = True
        for key in turns:
            if key in served:
                request = self._open.pop(key)
                request.served, request.passed = True, 0
                self._open[key] = request  # to the end of all turns
            else:
                self._open[key].passed += 1
        return batch

    def _turns(self) -> list[Hashable]:
        waiting = [key for key, request in self._open.items() if request.waiting]
        # Stable: within a class, the order of turns holds.
        waiting.sort(key=lambda key: (self._open[key].bulk, self._open[key].served))
        longest = max(waiting, key=lambda key: self._open[key].passed, default=None)
        if longest is not None and self._open[longest].passed >= PATIENCE:
            # One alone, so that it takes a batch's first place and not all of them.
            waiting.remove(longest)
            waiting.insert(0, longest)
        return waiting

    def _fits(self, item: Item, batch: Sequence[tuple[Item, Future[Any]]], served: int) -> bool:
        if not batch:
            return True  # whatever it costs, somebody has to be first
        widest = max(item.frames, *(other.frames for other, _ in batch))
        return (
            len(batch) < self.limits.items
            and item.frames <= WIDEST * batch[0][0].frames
            and (len(batch) + 1) * widest <= self.limits.frames
            and (not served or served + item.frames <= self.limits.share)
        )


class _Timed(Future[Any]):
    """Knows since when it waits."""

    def __init__(self, since: float) -> None:
        super().__init__()
        self.since = since


class Ticket(Generic[Item, Result]):
    """An admitted request's way to hand in chunks. Close it when the request ends, however it ends."""

    def __init__(self, scheduler: "Scheduler[Item, Result]", number: int) -> None:
        self._scheduler = scheduler
        self._number = number

    def submit(self, item: Item) -> "Future[Result]":
        """Queue one chunk; the future gives its result, or a ServerError. Cancelling it drops the chunk.

        It is cancelled already where the ticket or the scheduler is closed.
        """
        return self._scheduler._submit(self._number, item)  # noqa: SLF001 - the ticket is the scheduler's own face

    def close(self) -> None:
        """Leave the queue with everything that still waits."""
        self._scheduler._leave(self._number)  # noqa: SLF001 - as above


class Scheduler(Generic[Item, Result]):
    """A thread that feeds batches to `run`, which returns one result per chunk.

    `max_wait` is the longest wait in seconds that a new request is let in for. `idle` is called from the thread when
    nothing has been decoded for `idle_seconds`; `waited` with the seconds that each chunk waited for its batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        capacity: int,
        limits: Limits,
        clock: Callable[[], float],
        max_wait: float = float("inf"),
        idle: Callable[[], None] | None = None,
        idle_seconds: float | None = None,
        waited: Callable[[float], None] | None = None,
    ) -> None:
        self._run = run
        self._clock = clock
        self._max_wait = max_wait
        self._idle = idle
        self._waited = waited
        self._idle_seconds = idle_seconds if idle else None
        self._queue: Queue[Item] = Queue(capacity=capacity, limits=limits)
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._refusal: ServerError | None = None
        self._running: list[Item] = []
        self._in_flight: list[Future[Any]] = []
        self._running_since: float | None = None
        self._works = True
        self._speed = FIRST_SPEED
        self._thread = threading.Thread(target=self._work, name="localwhisper-engine", daemon=True)
        self._thread.start()

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
        """How long the batch in flight has been running; None where there is none."""
        since = self._running_since
        return None if since is None else self._clock() - since

    @property
    def works(self) -> bool:
        """Whether the last batch gave anything but faults of the engine."""
        return self._works

    @property
    def speed(self) -> float:
        """Seconds of sound decoded in a second: a running estimate."""
        return self._speed

    @property
    def queue_seconds(self) -> float:
        """Estimate how long a request that came now would wait for its first chunk's turn, in seconds."""
        with self._changed:
            return self._wait()

    def set_limits(self, limits: Limits) -> None:
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
            wait = self._wait()
            if wait > self._max_wait:
                raise Busy(
                    f"The server is busy: the wait is about {wait:.0f} s. Try again later.",
                    retry_after=wait - self._max_wait,
                )
            try:
                self._queue.admit(number, bulk=bulk)
            except Full:
                raise Busy("The server is busy: its queue is full. Try again later.", retry_after=wait) from None
        return Ticket(self, number)

    def send_away(self, refusal: ServerError, *, later_than: float) -> None:
        """Fail the requests that have not begun and would not be through in so many seconds, by the present speed."""
        with self._changed:
            running = sum(item.seconds for item in self._running)
            late = self._queue.late(later_than * self._speed - running)
            left = [future for key in late for future in self._queue.leave(key)]
        _fail(left, refusal)

    def refuse(self, refusal: ServerError) -> None:
        """Fail whatever waits or runs, and whatever will still be handed in; nobody hears of the batch in flight."""
        with self._changed:
            self._refusal = refusal
            left = [*self._queue.clear(), *self._in_flight]
        _fail(left, refusal)

    def close(self, timeout: float | None = None) -> bool:
        """Stop after the batch in flight, cancelling what waits; False if it still runs after `timeout` seconds."""
        with self._changed:
            self._closed = True
            left = self._queue.clear()
            self._changed.notify_all()
        for future in left:
            future.cancel()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _submit(self, number: int, item: Item) -> "Future[Result]":
        future: Future[Result] = Future() if self._waited is None else _Timed(self._clock())
        with self._changed:
            refusal = self._refusal
            taken = refusal is None and self._queue.put(number, item, future)
            self._changed.notify_all()
        if refusal is not None:
            _fail([future], refusal)
        elif not taken:
            future.cancel()  # nobody would ever answer it
        return future

    def _leave(self, number: int) -> None:
        with self._changed:
            left = self._queue.leave(number)
        for future in left:
            future.cancel()

    def _wait(self) -> float:
        running = sum(item.seconds for item in self._running)
        return (running + self._queue.seconds_ahead()) / self._speed

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            started = self._clock()
            outcomes = self._outcomes([item for item, _ in batch])
            self._works = not all(isinstance(outcome, EngineFailed) for outcome in outcomes)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                # A caller who left meanwhile has cancelled nothing: a future that runs cannot be. It may be refused.
                with contextlib.suppress(InvalidStateError):
                    if isinstance(outcome, BaseException):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
            took = max(self._clock() - started, 1e-6)
            with self._changed:
                speed = sum(item.seconds for item in self._running) / took
                self._running, self._in_flight, self._running_since = [], [], None
                # A running mean over the last few batches follows a machine that gets busier or idle.
                self._speed += (max(speed, 1e-3) - self._speed) / 4

    def _next(self) -> list[tuple[Item, Future[Any]]] | None:
        """Wait for the next batch of chunks that somebody still wants; None when closed."""
        seconds = self._idle_seconds
        while True:
            with self._changed:
                if self._changed.wait_for(self._needed, seconds):
                    if self._closed:
                        return None
                    batch = [entry for entry in self._queue.take() if entry[1].set_running_or_notify_cancel()]
                    self._running = [item for item, _ in batch]
                    self._in_flight = [future for _, future in batch]
                    self._running_since = self._clock() if batch else None
                    if batch:
                        self._tell_waits(batch)
                        return batch
                    continue
            # Without the lock: it may take its time, and callers are being admitted.
            self._be_idle()
            seconds = None  # once, until there was work

    def _needed(self) -> bool:
        return self._closed or len(self._queue) > 0

    def _tell_waits(self, batch: Sequence[tuple[Item, Future[Any]]]) -> None:
        if self._waited is not None:
            now = self._clock()
            for _, future in batch:
                if isinstance(future, _Timed):
                    self._waited(now - future.since)

    def _be_idle(self) -> None:
        if self._idle is not None:
            try:
                self._idle()
            except Exception:  # the thread has to live: the next batch will meet whatever is wrong
                logger.exception("could not go idle")

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
        if future.running() or future.set_running_or_notify_cancel():
            with contextlib.suppress(InvalidStateError):  # answered in this very moment
                future.set_exception(failure)
