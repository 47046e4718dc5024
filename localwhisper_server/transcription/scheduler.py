"""Admission, and the threads that take batches from the fair queue, run them, and hand out the results."""

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from localwhisper_server.errors import Busy, EngineFailed, ServerError, Stopping
from localwhisper_server.observer import ModelObserver, request_id
from localwhisper_server.transcription.queue import Batch, FairQueue, Job
from localwhisper_server.types import BatchLimits
from localwhisper_server.whisper.chunks import Chunk, ChunkResult

logger = logging.getLogger(__name__)

# The shortest pause between two calls of `idle`.
IDLE_CHECK_SECONDS = 0.01
# Seconds of audio decoded in a second: a guess until the first batch is measured.
FIRST_SPEED = 5.0
# People send messages one after the other: for so long after one, a worker is kept free of long recordings.
RESERVED_SECONDS = 20.0
# A model that is to be unloaded first finishes all messages that come within so many seconds, if it can by the latter.
FINISH_SECONDS, FINISH_AT_MOST_SECONDS = 5.0, 30.0
# How long a model stays for a message that is expected: admission takes some 10 ms, on a busy machine ten times that.
EXPECT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """An admitted request. Close it when the request ends, for whatever reason."""

    _scheduler: "Scheduler"

    def submit(self, chunks: Sequence[Chunk], *, first: bool = False) -> list[Future[ChunkResult]]:
        """Queue chunks, which may share a batch; each future gives a result or raises a ServerError.

        `first` puts them before the request's other chunks. Cancelling a future removes its chunk from the queue.
        After the ticket is closed, the futures come back cancelled.
        """
        return self._scheduler._submit(self, chunks, first=first)  # noqa: SLF001 - one class in two parts

    def close(self) -> None:
        """Leave the queue and cancel the chunks that still wait."""
        self._scheduler._leave(self)  # noqa: SLF001 - as above


class Scheduler:
    """Runs batches in `workers` threads; `run` returns one result per chunk and is called by all threads at once.

    Chunks above a request's share, such as those with the full window, take seconds. So one of several workers takes
    none while all others are decoding such chunks. Nor does it take a chunk of a long recording for RESERVED_SECONDS
    after another request came or a message was done: the next message then finds a free worker. A long recording alone
    has all workers.

    `max_wait` is the longest estimated wait, in seconds, with which a request is admitted. `ahead` estimates the wait
    before a request submits its first chunk. While no chunk waits or runs, a thread calls `idle` with the seconds since
    the last batch; it returns after how many seconds to call it again, or None for not before the next batch. `clock`
    gives seconds from any start.

    Other models may share the device. `others` counts the batches that they are decoding. While all models together
    have as many as there are `workers`, this one begins no second batch, or a message if it decodes long recordings
    alone. `progressed` is called after each batch and each request: another model may go on then, by `wake`.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Chunk]], Sequence[ChunkResult]],
        *,
        capacity: int,
        limits: BatchLimits,
        clock: Callable[[], float],
        max_wait: float = float("inf"),
        ahead: Callable[[], float] = lambda: 0.0,
        idle: Callable[[float], float | None] = lambda _: None,
        observer: ModelObserver | None = None,
        others: Callable[[], int] = lambda: 0,
        progressed: Callable[[], object] = lambda: None,
        workers: int = 1,
    ) -> None:
        self._run = run
        self._clock = clock
        self._max_wait = max_wait
        self._idle = idle
        self._observer = observer or ModelObserver()
        self._others = others
        self._progressed = progressed
        self._ahead = ahead
        self._limits = limits
        self._queue = FairQueue(limits)
        self._most_requests = limits.items + capacity
        self._changed = threading.Condition()
        self._closed = False
        self._refusal: ServerError | None = None
        self._in_flight: list[Batch] = []
        self._reserved_until = -math.inf
        self._finish_until: float | None = None  # messages that come until then are finished
        self._finishing: set[Hashable] | None = None  # the requests to work for; None for all
        self._expected_until, self._finished = -math.inf, False  # see `expect`; whether the model is being unloaded
        self._last = clock()  # when the last batch ended
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
            return len(self._queue.open)

    @property
    def full(self) -> bool:
        """Whether the queue has no room for one more request."""
        return self.requests >= self._most_requests

    @property
    def running_seconds(self) -> float | None:
        """How long the oldest running batch has been running; None if none runs."""
        with self._changed:
            return max((self._clock() - batch.since for batch in self._in_flight), default=None)

    @property
    def failures(self) -> int:
        """How many batches in a row, up to the last, gave only EngineFailed."""
        return self._failures

    @property
    def speed(self) -> float:
        """Seconds of audio decoded in a second: a running estimate."""
        return self._speed * len(self._threads)

    @property
    def queue_seconds(self) -> float:
        """Estimate how long the first chunk of a new request would wait, in seconds."""
        with self._changed:
            ahead = self._ahead()
            if not self._queue.waiting and len(self._in_flight) < len(self._threads):
                return ahead  # an idle worker takes the first chunk at once
            running = sum(batch.seconds for batch in self._in_flight)
            return ahead + (running + self._queue.seconds_ahead()) / self.speed

    def require_room(self) -> None:
        """Check that one more request would be admitted.

        Raises:
            Busy: the queue is full, or the estimated wait is longer than `max_wait`. `retry_after` estimates when the
                request would be admitted.

        """
        wait = self.queue_seconds
        if wait > self._max_wait:
            raise Busy(
                f"The server is busy: the wait is about {wait:.0f} s. Try again later.",
                retry_after=wait - self._max_wait,
            )
        if len(self._queue.open) >= self._most_requests:
            raise Busy("The server is busy: its queue is full. Try again later.", retry_after=wait)

    def admit(self, *, bulk: bool = False, live: bool = False) -> Ticket:
        """Open a request; raise Busy as `require_room` does. `live`: it may stay open for hours."""
        with self._changed:
            self.require_room()
            ticket = Ticket(self)
            self._expected_until = -math.inf
            if self._queue.has_long and not bulk:
                self._reserve()
            self._queue.admit(ticket, bulk=bulk, live=live)
            self._finishing = self._messages()
        return ticket

    def expect(self) -> None:
        """Tell of a request that will be admitted in a moment: `finish` waits for it, EXPECT_SECONDS at most."""
        with self._changed:
            self._expected_until = self._clock() + EXPECT_SECONDS

    def send_away(self, refusal: ServerError, *, later_than: float) -> None:
        """Fail the requests that have not begun and would not end within so many seconds at the present speed."""
        with self._changed:
            running = sum(batch.seconds for batch in self._in_flight)
            late = self._queue.late(later_than * self.speed - running)
            left = [job for key in late for job in self._queue.leave(key)]
        _fail(left, refusal)

    def refuse(self, refusal: ServerError) -> None:
        """Fail every chunk that waits or runs, and every chunk submitted from now on."""
        with self._changed:
            self._refusal = refusal
            left = self._queue.clear() + [job for batch in self._in_flight for job in batch.jobs]
        _fail(left, refusal)

    def finish(self) -> bool:
        """Work only for messages that came within FINISH_SECONDS, until `resume`; return whether all is done."""
        with self._changed:
            if self._finish_until is None:
                self._finish_until = self._clock() + FINISH_SECONDS
            self._finishing = self._messages()
            expected = self._clock() < min(self._expected_until, self._finish_until)
            self._finished = not self._finishing and not self._in_flight and not expected
            return self._finished

    @property
    def finishing(self) -> bool:
        """Whether a message that comes now has to wait for `resume`."""
        return self._finished or (self._finish_until is not None and self._clock() >= self._finish_until)

    def _messages(self) -> set[Hashable] | None:
        """Return the messages to finish, None if there is no need to finish."""
        if self._finish_until is None:
            return None
        messages = self._queue.messages()
        late = self._clock() - self._finish_until
        if late >= FINISH_AT_MOST_SECONDS:
            return set()  # one that is decoded or read for so long may not keep the other model waiting
        return self._finishing & messages if late >= 0 and self._finishing is not None else messages

    def resume(self) -> None:
        """Work for all requests again."""
        with self._changed:
            if self._finish_until is not None:
                self._finish_until = self._finishing = None
                self._finished = False
                self._changed.notify_all()

    def wake(self) -> None:
        """Look again whether a batch may begin."""
        with self._changed:
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> bool:
        """Refuse the waiting chunks; return whether all running batches end within `timeout` seconds."""
        with self._changed:
            self._closed, self._refusal = True, self._refusal or Stopping()
            left = self._queue.clear()
            self._changed.notify_all()
        _fail(left, self._refusal)
        until = None if timeout is None else self._clock() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - self._clock()))
        return not any(thread.is_alive() for thread in self._threads)

    def _submit(self, ticket: Ticket, chunks: Sequence[Chunk], *, first: bool) -> list[Future[ChunkResult]]:
        now = self._clock()
        jobs = [Job(chunk, chunk.frames, Future(), now, request_id.get()) for chunk in chunks]
        with self._changed:
            refusal = self._refusal
            taken = refusal is None and self._queue.put(ticket, jobs, first=first)
            if self._queue.is_live(ticket):
                self._reserve()
            self._changed.notify(len(jobs))
        if refusal is not None:
            _fail(jobs, refusal)
        elif not taken:
            for job in jobs:
                job.future.cancel()
        return [job.future for job in jobs]

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket in self._queue.messages():
                self._reserve()
            left = self._queue.leave(ticket)
        for job in left:
            job.future.cancel()
        self._progressed()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            # For the log; this thread works for several requests at a time.
            request_id.set(",".join(dict.fromkeys(job.request_id for job in batch.jobs)))
            outcomes = self._outcomes([job.chunk for job in batch.jobs])
            request_id.set("-")
            failed = all(isinstance(outcome, EngineFailed) for outcome in outcomes)
            self._failures = self._failures + 1 if failed else 0
            for job, outcome in zip(batch.jobs, outcomes, strict=True):
                # `refuse` may have failed the future meanwhile. A running future cannot be cancelled.
                with contextlib.suppress(InvalidStateError):
                    if isinstance(outcome, BaseException):
                        job.future.set_exception(outcome)
                    else:
                        job.future.set_result(outcome)
            with self._changed:
                self._in_flight.remove(batch)
                self._last = self._clock()
                # A running mean over the last few batches follows a machine that gets busier or idle. A failed batch
                # does not count: it ends early and would look fast.
                if not all(isinstance(outcome, BaseException) for outcome in outcomes):
                    took = max(self._last - batch.since, 1e-6)
                    self._speed += (max(batch.seconds / took, 1e-3) - self._speed) / 4
            self._progressed()

    def _next(self) -> Batch | None:
        """Wait for the next batch, and be idle meanwhile; None when closed."""
        pause: float | None = 0.0
        while True:
            with self._changed:
                batch = self._changed.wait_for(lambda: self._closed or self._take(), pause)
                if isinstance(batch, Batch):
                    return batch
                if self._closed:
                    return None
                since = None if self._in_flight else self._clock() - self._last
                if self._reserved:
                    pause = self._reserved_until - self._clock()
                    continue
            # Without the lock, since unloading a model takes long and requests are admitted meanwhile. While another
            # worker decodes, the model is in use: that worker calls `idle` when it is done.
            pause = None if since is None else self._be_idle(since)

    def _take(self) -> Batch | None:
        """Begin the next batch of chunks whose futures are not cancelled; None if there is none for this worker."""
        crowded = len(self._in_flight) + self._others() >= len(self._threads)
        if crowded and not all(batch.long for batch in self._in_flight):
            return None
        self._finishing = self._messages()
        while self._queue.waiting:
            taken = self._queue.take(
                most=self._batch_size(),
                short_first=self._last_free_worker,
                no_long=self._reserved or (crowded and bool(self._in_flight)),
                among=self._finishing,
            )
            if not taken:
                return None
            if jobs := [job for job in taken if job.future.set_running_or_notify_cancel()]:
                batch = Batch(jobs, self._clock())
                self._in_flight.append(batch)
                for job in jobs:
                    self._observer.waited(batch.since - job.since)
                return batch
        return None

    def _batch_size(self) -> int:
        """Return how many chunks this worker may take, so that the workers share the chunks evenly.

        The idle workers share the waiting chunks. All workers share the waiting and the running chunks: the workers
        that are busy now will soon be idle.
        """
        idle = len(self._threads) - len(self._in_flight)
        running = sum(len(batch.jobs) for batch in self._in_flight)
        waiting = self._queue.waiting
        return min(math.ceil(waiting / idle), max(1, (waiting + running) // len(self._threads)))

    def _reserve(self) -> None:
        self._reserved_until = self._clock() + RESERVED_SECONDS

    @property
    def _reserved(self) -> bool:
        """Whether this worker must leave long recordings to the others, which are at them."""
        at_long = sum(batch.long for batch in self._in_flight)
        return 0 < at_long >= len(self._threads) - 1 and self._clock() < self._reserved_until

    @property
    def _last_free_worker(self) -> bool:
        """Whether all other workers are decoding chunks above the share."""
        long = [batch for batch in self._in_flight if batch.frames > self._limits.share]
        return 0 < len(long) >= len(self._threads) - 1

    def _be_idle(self, seconds: float) -> float | None:
        try:
            pause = self._idle(seconds)
        except Exception:  # the thread has to go on: the next batch will show what is wrong
            logger.exception("unloading the model while idle failed")
            return None
        return None if pause is None else max(pause, IDLE_CHECK_SECONDS)

    def _outcomes(self, chunks: Sequence[Chunk]) -> Sequence[ChunkResult | ServerError]:
        """Run a batch; if it fails, run each chunk alone, so that only the bad chunk fails."""
        started = self._clock()
        try:
            results = self._run(chunks)
        except ServerError as failure:
            return [failure for _ in chunks]
        except Exception:
            logger.exception("a batch of %d failed", len(chunks))
        else:
            if len(results) == len(chunks):
                took, sound = self._clock() - started, sum(chunk.seconds for chunk in chunks)
                self._observer.decoded(len(chunks), self._limits.items, sound, took)
                for result in results:
                    if result.rejected is not None:
                        self._observer.retried(result.rejected)
                return results
            logger.error("a batch of %d gave %d results", len(chunks), len(results))
        if len(chunks) == 1:
            return [EngineFailed()]
        return [outcome for chunk in chunks for outcome in self._outcomes([chunk])]


def _fail(jobs: Sequence[Job], failure: ServerError) -> None:
    for job in jobs:
        with contextlib.suppress(InvalidStateError, RuntimeError):  # another thread has just answered it
            if job.future.running() or job.future.set_running_or_notify_cancel():
                job.future.set_exception(failure)
