"""The fair queue: which chunks make up the next batch. Pure: no clock, no thread."""

from collections import deque
from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass, field

from localwhisper_server.types import BatchLimits
from localwhisper_server.whisper.chunks import FRAMES_PER_SECOND, Chunk, ChunkResult

# All chunks of a batch are encoded with the longest window among them. So a chunk may be longer than the batch's first
# chunk by this factor at most.
LONGEST_RATIO = 1.5
# After so many batches in a row that took nothing of a request, the request comes first.
MAX_SKIPS = 4
# Requests are ordered by the number of batches they were in, up to this number. So a message of a few chunks, or one
# whose chunk is decoded again, goes before a long recording.
FEW_BATCHES = 4
# Nor is a recording a message from which more sound than this has come. That is known sooner: on a CPU, FEW_BATCHES
# batches take ten seconds.
MESSAGE_SECONDS = 120.0


@dataclass(slots=True, eq=False)
class Job:
    """A chunk in the queue, and the future of its result.

    `since` is when it was submitted, by the scheduler's clock. `request_id` goes into the log. `long` is set when it is
    taken: whether its request is a long one.
    """

    chunk: Chunk
    frames: int
    future: Future[ChunkResult]
    since: float = 0.0
    request_id: str = "-"
    long: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch that the model is decoding, and when that began."""

    jobs: list[Job]
    since: float

    @property
    def seconds(self) -> float:
        """How much sound it is."""
        return sum(job.chunk.seconds for job in self.jobs)

    @property
    def frames(self) -> int:
        """The longest window, in frames of 10 ms; all chunks are encoded with it."""
        return max(job.frames for job in self.jobs)

    @property
    def long(self) -> bool:
        """Whether it holds a chunk of a long recording."""
        return any(job.long for job in self.jobs)


@dataclass(slots=True, eq=False)
class _Request:
    """An open request: admitted, and not yet left."""

    key: Hashable
    bulk: bool
    live: bool = False
    batches: int = 0
    skipped: int = 0
    submitted: float = 0.0  # seconds of sound
    waiting: deque[Job] = field(default_factory=deque)

    @property
    def long(self) -> bool:
        """Whether it is a recording of minutes or hours. A live session lasts as long, but never has much waiting."""
        return not self.live and (self.batches >= FEW_BATCHES or self.submitted > MESSAGE_SECONDS)

    @property
    def message(self) -> bool:
        return not (self.bulk or self.live or self.long)

    @property
    def seconds(self) -> float:
        return sum(job.chunk.seconds for job in self.waiting)

    @property
    def frames(self) -> int:
        return sum(job.frames for job in self.waiting)


class FairQueue:
    """The waiting chunks of all open requests.

    A request is admitted, submits chunks in order, and leaves. A batch begins with the first chunk of the first request
    in order. Chunks of the others fill it, one of each request in turn, as long as they are not much longer. The order
    is:

    1. the request skipped most often, if it was skipped MAX_SKIPS times or more;
    2. interactive requests before bulk requests;
    3. requests that were in fewer batches first (see FEW_BATCHES);
    4. the request that has waited longest since its last batch, or since it was admitted.

    Chunks of requests already in progress never join a new request's first batch: they would make it slower. So a short
    message is in the very next batch even while hour-long files are decoded. No request is skipped more often than
    MAX_SKIPS times plus once for each other open request.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self.waiting = 0
        """How many chunks wait."""
        self._limits = limits
        self.open: dict[Hashable, _Request] = {}
        """New requests in order of arrival; a request that was in a batch moves to the end."""

    @property
    def has_long(self) -> bool:
        """Whether a long recording is open."""
        return any(request.long for request in self.open.values())

    def messages(self) -> set[Hashable]:
        """Return the open messages: the requests that are neither bulk, live sessions nor long recordings."""
        return {key for key, request in self.open.items() if request.message}

    def is_live(self, key: Hashable) -> bool:
        """Whether this is an open live session."""
        return key in self.open and self.open[key].live

    def seconds_ahead(self) -> float:
        """Return the seconds of audio decoded before a new request: one share of each interactive request."""
        share = self._limits.share / FRAMES_PER_SECOND
        return sum(min(share, request.seconds) for request in self.open.values() if not request.bulk)

    def admit(self, key: Hashable, *, bulk: bool = False, live: bool = False) -> None:
        """Open a request."""
        self.open[key] = _Request(key, bulk, live)

    def put(self, key: Hashable, jobs: Sequence[Job], *, first: bool = False) -> bool:
        """Add chunks of an open request, before its others if `first`; return False if the request has left."""
        request = self.open.get(key)
        if request is None:
            return False
        self.waiting += len(jobs)
        if first:  # sound that has been submitted before
            request.waiting.extendleft(reversed(jobs))
        else:
            request.submitted += sum(job.chunk.seconds for job in jobs)
            request.waiting.extend(jobs)
        return True

    def leave(self, key: Hashable) -> list[Job]:
        """Close a request and return its waiting chunks."""
        request = self.open.pop(key, None)
        left = list(request.waiting) if request else []
        self.waiting -= len(left)
        return left

    def clear(self) -> list[Job]:
        """Close all requests and return their waiting chunks."""
        return [job for key in list(self.open) for job in self.leave(key)]

    def late(self, seconds: float) -> list[Hashable]:
        """Return the requests that were in no batch yet and do not end within so many seconds of audio."""
        ahead, late = 0.0, []
        for request in self._order():
            ahead += request.seconds
            if ahead > seconds and not request.batches:
                late.append(request.key)
        return late

    def take(
        self,
        *,
        most: float = float("inf"),
        short_first: bool = False,
        no_long: bool = False,
        among: AbstractSet[Hashable] | None = None,
    ) -> list[Job]:
        """Remove and return the next batch, of at most `most` chunks; empty if no chunk may be taken.

        With `short_first`, only chunks within the share are taken if any waits, so that the batch is soon done. With
        `no_long`, no chunk is of a long recording. With `among`, all are of those requests.
        """
        order = [
            request
            for request in self._order()
            if not (no_long and request.long) and (among is None or request.key in among)
        ]
        short = [request for request in order if self._short(request) is not None] if short_first else []
        order, candidate = (short, self._short) if short else (order, self._first)
        new = bool(order) and not order[0].batches
        joining = [request for request in order if not (new and request.batches)]
        ending = {request for request in joining if request.frames <= self._limits.end}
        batch: list[Job] = []
        frames: dict[_Request, int] = {}
        progress = True
        while progress:
            progress = False
            for request in joining:
                at = candidate(request)
                if at is None or len(batch) >= most:
                    continue
                job = request.waiting[at]
                if self._fits(job, batch, 0 if request in ending else frames.get(request, 0)):
                    del request.waiting[at]
                    job.long = request.long
                    batch.append(job)
                    frames[request] = frames.get(request, 0) + job.frames
                    progress = True
        self.waiting -= len(batch)
        for request in order:
            if request in frames:
                request.batches, request.skipped = request.batches + 1, 0
                self.open[request.key] = self.open.pop(request.key)  # to the end
            else:
                request.skipped += 1
        return batch

    @staticmethod
    def _first(request: _Request) -> int | None:
        return 0 if request.waiting else None

    def _short(self, request: _Request) -> int | None:
        """Return the index of the request's first chunk within the share; None if it has none."""
        return next((at for at, job in enumerate(request.waiting) if job.frames <= self._limits.share), None)

    def _order(self) -> list[_Request]:
        waiting = [request for request in self.open.values() if request.waiting]
        waiting.sort(key=lambda request: (request.bulk, min(request.batches, FEW_BATCHES)))
        longest = max(waiting, key=lambda request: request.skipped, default=None)
        if longest is not None and longest.skipped >= MAX_SKIPS:
            # Only one: otherwise the skipped requests could fill the whole batch.
            waiting.remove(longest)
            waiting.insert(0, longest)
        return waiting

    def _fits(self, job: Job, batch: Sequence[Job], frames: int) -> bool:
        """Whether a chunk may join the batch, in which its request has so many frames already."""
        if not batch:
            return True  # even a chunk above every limit has to be decoded
        longest = max(job.frames, *(other.frames for other in batch))
        return (
            len(batch) < self._limits.items
            and job.frames <= LONGEST_RATIO * batch[0].frames
            and (len(batch) + 1) * longest <= self._limits.frames
            and (not frames or frames + job.frames <= self._limits.share)
        )
