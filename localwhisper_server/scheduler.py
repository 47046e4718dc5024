"""Who is decoded next: admission, fairness and batches. A pure core and the thread around it.

`Queue` decides; `Scheduler` owns the one thread that calls the engine, so the engine is never called twice at once.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from localwhisper_server.errors import Busy, EngineFailed

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


# Batches full of new requests that those served before let pass.
PATIENCE = 3


class Full(Exception):
    """The queue holds as many requests as it may."""


class Queue(Generic[Item]):
    """The waiting work of all open requests. Pure: no clock, no thread, no I/O.

    A request is admitted, then hands in items (chunks) in order, then leaves. Batches take one item of each request
    in turn, the request served longest ago first, a new one before all that were served: a short message that comes
    while an hour-long file is decoded is in the very next batch. New ones come in the order of their arrival, and
    after PATIENCE batches full of them one seat goes to those served before, so that nobody waits for ever.
    """

    def __init__(self, *, capacity: int, batch: int) -> None:
        self._capacity = capacity
        self._batch = batch
        # Each in the order of its turns: the first is served next.
        self._new: dict[Hashable, deque[Item]] = {}
        self._served: dict[Hashable, deque[Item]] = {}
        self._passed = 0  # batches in a row that had no seat for those served before

    def __len__(self) -> int:
        """Count the items that wait."""
        return sum(len(items) for items in (*self._new.values(), *self._served.values()))

    @property
    def requests(self) -> int:
        """How many requests are open."""
        return len(self._new) + len(self._served)

    def admit(self, request: Hashable) -> None:
        """Open a request.

        Raises:
            Full: as many are being served and waiting as may.

        """
        if self.requests >= self._batch + self._capacity:
            raise Full
        self._new[request] = deque()

    def put(self, request: Hashable, item: Item) -> bool:
        """Add an item to an open request; False, and the item is dropped, for one that has left."""
        for open_requests in (self._new, self._served):
            if request in open_requests:
                open_requests[request].append(item)
                return True
        return False

    def leave(self, request: Hashable) -> list[Item]:
        """Close a request and return what it had waiting."""
        return [*self._new.pop(request, ()), *self._served.pop(request, ())]

    def clear(self) -> list[Item]:
        """Close all requests and return what they had waiting."""
        return [item for request in [*self._new, *self._served] for item in self.leave(request)]

    def take(self) -> list[Item]:
        """Return the next batch, empty if nothing waits."""
        batch: list[Item] = []
        while len(batch) < self._batch and (turns := self._turns()):
            for request in turns[: self._batch - len(batch)]:
                items = self._new.pop(request) if request in self._new else self._served.pop(request)
                batch.append(items.popleft())
                self._served[request] = items  # to the end of all turns
        return batch

    def _turns(self) -> list[Hashable]:
        """Return the requests with something waiting, the next one first."""
        new, served = ([key for key, items in group.items() if items] for group in (self._new, self._served))
        self._passed = self._passed + 1 if served and len(new) >= self._batch else 0
        if self._passed > PATIENCE:
            self._passed = 0
            return [served[0], *new]
        return [*new, *served]


class Ticket(Generic[Item, Result]):
    """An admitted request's way to hand in chunks. Close it when the request ends, however it ends."""

    def __init__(self, scheduler: "Scheduler[Item, Result]", number: int) -> None:
        self._scheduler = scheduler
        self._number = number

    def submit(self, item: Item) -> "Future[Result]":
        """Queue one chunk; the future gives its result, or EngineFailed. Cancelling it drops the chunk.

        It is cancelled already where the ticket or the scheduler is closed.
        """
        return self._scheduler._submit(self._number, item)  # noqa: SLF001 - the ticket is the scheduler's own face

    def close(self) -> None:
        """Leave the queue with everything that still waits."""
        self._scheduler._leave(self._number)  # noqa: SLF001 - as above


class Scheduler(Generic[Item, Result]):
    """A thread that feeds batches to `run`, which returns one result per item."""

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        capacity: int,
        batch: int,
        clock: Callable[[], float],
    ) -> None:
        self._run = run
        self._clock = clock
        self._batch = batch
        self._queue: Queue[tuple[Item, Future[Result]]] = Queue(capacity=capacity, batch=batch)
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._running = 0
        self._seconds_per_item = 1.0
        self._thread = threading.Thread(target=self._work, name="localwhisper-engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """How many chunks are in the engine now."""
        return self._running

    @property
    def requests(self) -> int:
        """How many requests are open."""
        with self._changed:
            return self._queue.requests

    @property
    def queue_seconds(self) -> float:
        """Estimate how long a chunk handed in now would wait, in seconds."""
        with self._changed:
            return self._wait()

    def admit(self) -> Ticket[Item, Result]:
        """Open a request.

        Raises:
            Busy: the queue is full; `retry_after` estimates when it will not be.

        """
        number = next(self._numbers)
        with self._changed:
            try:
                self._queue.admit(number)
            except Full:
                raise Busy(
                    "The server is busy: its queue is full. Try again later.", retry_after=self._wait()
                ) from None
        return Ticket(self, number)

    def close(self, timeout: float | None = None) -> bool:
        """Stop after the batch in flight, cancelling what waits; False if it still runs after `timeout` seconds."""
        with self._changed:
            self._closed = True
            left = self._queue.clear()
            self._changed.notify_all()
        for _, future in left:
            future.cancel()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _submit(self, number: int, item: Item) -> "Future[Result]":
        future: Future[Result] = Future()
        with self._changed:
            taken = self._queue.put(number, (item, future))
            self._changed.notify_all()
        if not taken:
            future.cancel()  # nobody would ever answer it
        return future

    def _leave(self, number: int) -> None:
        with self._changed:
            left = self._queue.leave(number)
        for _, future in left:
            future.cancel()

    def _wait(self) -> float:
        return (len(self._queue) + self._running) * self._seconds_per_item

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            started = self._clock()
            items = [item for item, _ in batch]
            for (_, future), outcome in zip(batch, self._outcomes(items), strict=True):
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
            took = (self._clock() - started) / len(batch)
            with self._changed:
                self._running = 0
                # A running mean over the last few batches follows a machine that gets busier or idle.
                self._seconds_per_item += (took - self._seconds_per_item) / 4

    def _next(self) -> "list[tuple[Item, Future[Result]]] | None":
        """Wait for the next batch of chunks that somebody still wants; None when closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._queue))
                if self._closed:
                    return None
                batch = [entry for entry in self._queue.take() if entry[1].set_running_or_notify_cancel()]
                self._running = len(batch)
            if batch:
                return batch

    def _outcomes(self, items: Sequence[Item]) -> "Sequence[Result | EngineFailed]":
        """Run a batch; if it fails, each chunk alone, so that one bad chunk does not take its neighbours along."""
        try:
            outcomes = self._run(items)
        except Exception:
            logger.exception("a batch of %d failed", len(items))
        else:
            if len(outcomes) == len(items):
                return outcomes
            logger.error("a batch of %d gave %d results", len(items), len(outcomes))
        if len(items) == 1:
            return [EngineFailed()]
        return [outcome for item in items for outcome in self._outcomes([item])]
