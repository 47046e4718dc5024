"""A face's scheduler: admits requests for all replicas, sends them chunks, and sends again what a lost replica had."""

import asyncio
import contextlib
import contextvars
import logging
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from typing import Any

from localwhisper_server.cluster.loads import Loads
from localwhisper_server.cluster.messages import Answer, Call, with_features
from localwhisper_server.errors import Busy, EngineFailed, ServerError, Stopping
from localwhisper_server.observer import request_id
from localwhisper_server.types import BatchLimits
from localwhisper_server.whisper.chunks import FRAMES_PER_SECOND, Chunk, ChunkResult

logger = logging.getLogger(__name__)

# Seconds before a chunk is sent again whose replica was lost. After so many it is given up: it may be what ends them.
LOST_PAUSES = (0.0, 0.1, 1.0, 5.0)
# `Retry-After` while no replica runs: Serve starts a process and loads a model.
NO_REPLICA_RETRY_SECONDS = 10.0


@dataclass(slots=True, eq=False)
class ClusterTicket:
    """An admitted request. Close it when the request ends, for whatever reason."""

    _scheduler: "ClusterScheduler"
    bulk: bool
    live: bool
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    calls: dict[Future[ChunkResult], asyncio.Task[None]] = field(default_factory=dict)
    closed: bool = False
    begun: bool = False

    def submit(self, chunks: Sequence[Chunk], *, first: bool = False) -> list[Future[ChunkResult]]:
        """Send each chunk to a replica; see `Ticket.submit`. Only on the event loop."""
        return [self._scheduler.send(self, chunk, first=first) for chunk in chunks]

    def close(self) -> None:
        """Leave the queues of all replicas."""
        self.closed = True
        self._scheduler.leave(self)
        for future in list(self.calls):
            future.cancel()


class ClusterScheduler:
    """Satisfies `transcription.scheduling.Scheduling` with the replicas of one model.

    `decode` sends a call to the best replica: what it returns can be awaited for the Answer, and cancelled. It raises
    one of `lost` if the replica has died. So many requests wait at most as fit into a batch of each replica, and
    `capacity` more. `max_wait` and `ahead` are as in a Scheduler.
    """

    def __init__(
        self,
        decode: Callable[[Call], Any],
        loads: Loads,
        *,
        lost: tuple[type[Exception], ...],
        limits: BatchLimits,
        capacity: int,
        max_wait: float,
        ahead: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._decode = decode
        self._loads = loads
        self._lost = lost
        self._limits = limits
        self._capacity = capacity
        self._max_wait = max_wait
        self._ahead = ahead
        self._open: dict[str, ClusterTicket] = {}
        self._refusal: ServerError | None = None

    @property
    def requests(self) -> int:
        """How many requests of this face are open."""
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether there is no room for one more request."""
        return self.requests >= self._limits.items * max(1, self._loads.count) + self._capacity

    @property
    def speed(self) -> float:
        """Seconds of audio that all replicas decode in a second."""
        return self._loads.speed

    @property
    def queue_seconds(self) -> float:
        """Estimate how long the first chunk of a new request would wait, in seconds."""
        return self._ahead() + self._loads.queue_seconds(self._limits.share / FRAMES_PER_SECOND)

    @property
    def finishing(self) -> bool:
        """Never: the replicas share no memory."""
        return False

    def require_room(self) -> None:
        """Check that one more request would be admitted.

        Raises:
            Busy: no replica runs, the queues are full, or the estimated wait is longer than `max_wait`. `retry_after`
                estimates when the request would be admitted.

        """
        if not self._loads.count:
            raise Busy("No engine replica is running. Try again shortly.", retry_after=NO_REPLICA_RETRY_SECONDS)
        wait = self.queue_seconds
        if wait > self._max_wait:
            message = f"The cluster is busy: the wait is about {wait:.0f} s. Try again later."
            raise Busy(message, retry_after=wait - self._max_wait)
        if self.full:
            raise Busy("The cluster is busy: its queues are full. Try again later.", retry_after=wait)

    def admit(self, *, bulk: bool = False, live: bool = False) -> ClusterTicket:
        """Open a request; raise Busy as `require_room` does."""
        self.require_room()
        ticket = ClusterTicket(self, bulk, live)
        self._open[ticket.name] = ticket
        return ticket

    def send(self, ticket: ClusterTicket, chunk: Chunk, *, first: bool) -> Future[ChunkResult]:
        """Send a chunk of an open request; the future is cancelled if the request has left, or fails if refused."""
        future: Future[ChunkResult] = Future()
        if self._refusal is not None:
            future.set_exception(self._refusal)
            return future
        if ticket.closed:
            future.cancel()
            return future
        call = Call(
            uuid.uuid4().hex,
            ticket.name,
            chunk,
            first=first,
            bulk=ticket.bulk,
            live=ticket.live,
            request_id=request_id.get(),
        )
        loop = asyncio.get_running_loop()
        # In an empty context: Serve cancels calls of the HTTP request that they were made in, but the answer may be
        # for others too (request coalescing).
        task = loop.create_task(self._answer(call, future), context=contextvars.Context())
        ticket.calls[future] = task
        task.add_done_callback(lambda _: ticket.calls.pop(future, None))

        def cancelled(done: Future[ChunkResult]) -> None:
            if done.cancelled():
                loop.call_soon_threadsafe(task.cancel)
            else:
                ticket.begun = True

        future.add_done_callback(cancelled)
        return future

    def leave(self, ticket: ClusterTicket) -> None:
        """Close a request."""
        self._open.pop(ticket.name, None)

    def send_away(self, refusal: ServerError, *, later_than: float) -> None:
        """Fail the requests without any result so far, if a new one would wait longer than so many seconds."""
        if self.queue_seconds > later_than:
            for ticket in list(self._open.values()):
                if not ticket.begun:
                    _fail(ticket, refusal)

    def refuse(self, refusal: ServerError) -> None:
        """Fail every chunk that waits or runs, and every chunk submitted from now on."""
        self._refusal = refusal
        for ticket in list(self._open.values()):
            _fail(ticket, refusal)

    def expect(self) -> None:
        """Do nothing: a face unloads no model; see `finish`."""

    def finish(self) -> bool:
        """Return False: a face holds no model that could be unloaded."""
        return False

    def resume(self) -> None:
        """Do nothing: it never stops; see `finish`."""

    def wake(self) -> None:
        """Do nothing: each replica looks after its own queue."""

    def close(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - no thread to wait for
        """Refuse what is open."""
        self.refuse(self._refusal or Stopping())
        return True

    async def _answer(self, call: Call, future: Future[ChunkResult]) -> None:
        try:
            result = await self._result(call)
        except Exception as failure:  # noqa: BLE001 - the future's owner raises it
            with contextlib.suppress(InvalidStateError):
                future.set_exception(failure if isinstance(failure, ServerError) else _unexpected(call, failure))
        else:
            with contextlib.suppress(InvalidStateError):
                future.set_result(result)

    async def _result(self, call: Call) -> ChunkResult:
        """Return the result of a call, from another replica if one is lost or stops.

        Raises:
            Busy: the replica's memory is taken by something else.
            EngineFailed: the model failed, or several replicas were lost with this chunk.

        """
        for pause in LOST_PAUSES:
            call = replace(call, number=uuid.uuid4().hex)
            self._loads.begun(call)
            response = self._decode(call)
            try:
                answer: Answer = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except self._lost as failure:
                logger.warning("a replica was lost, and its chunk is sent to another one: %s", type(failure).__name__)
                await asyncio.sleep(pause)
                continue
            finally:
                self._loads.ended(call)
            self._loads.told(answer.state)
            if answer.result is not None:
                return with_features(answer.result, call.chunk)
            if answer.refusal is None:
                raise EngineFailed
            if not answer.refusal.stopping:
                raise Busy(answer.refusal.message, retry_after=answer.refusal.retry_after)
        raise EngineFailed


def _fail(ticket: ClusterTicket, refusal: ServerError) -> None:
    for future, task in list(ticket.calls.items()):
        with contextlib.suppress(InvalidStateError):
            future.set_exception(refusal)
        task.get_loop().call_soon_threadsafe(task.cancel)


def _unexpected(call: Call, failure: Exception) -> ServerError:
    logger.error("a chunk of request %s could not be decoded", call.request_id, exc_info=failure)
    return EngineFailed()
