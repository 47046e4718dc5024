"""Whose turn it is: admission, fairness and batches. Pure: no clock, no thread, no I/O."""

from collections import deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from localwhisper_server.types import BatchLimits


class Work(Protocol):
    """What the scheduler needs to know of a chunk."""

    @property
    def frames(self) -> int:
        """What the encoder is given, in frames of 10 ms: the cost."""

    @property
    def seconds(self) -> float:
        """How much sound it is."""


Item = TypeVar("Item", bound=Work)

# A chunk joins a batch whose first chunk is not much shorter: all are encoded with the longest window among them.
WIDEST = 1.5
# So many batches a request may be passed over before it comes first, whatever came after it.
MAX_SKIPS = 4
# A request goes before those that were in more batches, up to so many: a message that is heard again, or has a few
# chunks, before a long recording.
FEW = 4
FRAMES_PER_SECOND = 100


class Full(Exception):
    """The queue holds as many requests as it may."""


@dataclass(slots=True)
class _Open(Generic[Item]):
    """A request that was admitted and has not left."""

    bulk: bool
    served: int = 0  # batches
    waiting: deque[tuple[Item, Future[Any]]] = field(default_factory=deque)
    passed: int = 0


class FairQueue(Generic[Item]):
    """The waiting work of all open requests.

    A request is admitted, hands in chunks in order, and leaves. Each batch begins with the first chunk of the request
    whose turn it is and is filled with chunks of others, in turn, that are not much longer; those of requests being
    served do not fill up the batch that a new one begins, which would take longer for it. Turns: interactive before
    bulk; a new request before those already served, of these one that was in few batches, and of all others the one
    served longest ago; but first the one passed over most often, where that was MAX_SKIPS times or more. So a short
    message that comes while hour-long files are decoded is in the very next batch, and nobody is passed over more than
    MAX_SKIPS times and once for each other.
    """

    def __init__(self, *, capacity: int, limits: BatchLimits) -> None:
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

    def put(self, key: Hashable, entries: Sequence[tuple[Item, Future[Any]]], *, first: bool = False) -> bool:
        """Add chunks to an open request, behind its others or before them; False where it has left."""
        request = self._open.get(key)
        if request is None:
            return False
        if first:
            request.waiting.extendleft(reversed(entries))
        else:
            request.waiting.extend(entries)
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

    def ready(self, *, light: bool = False) -> bool:
        """Whether `take` would give anything."""
        return any(self._next(request, light=light) is not None for request in self._open.values())

    def take(self, *, most: float = float("inf"), light: bool = False) -> list[tuple[Item, Future[Any]]]:
        """Return the next batch, of at most so many chunks; empty if nothing waits.

        A `light` one holds no chunk above the share: nothing that would keep the next request waiting for long.
        """
        turns = [key for key in self._turns() if self._next(self._open[key], light=light) is not None]
        # Whoever is new is not slowed by those who are being served.
        new = bool(turns) and not self._open[turns[0]].served
        together = [key for key in turns if not (new and self._open[key].served)]
        batch: list[tuple[Item, Future[Any]]] = []
        served: dict[Hashable, int] = {}  # frames of each request in this batch
        ending = {key for key in together if self._frames(self._open[key]) <= self.limits.end}
        progress = True
        while progress:
            progress = False
            for key in together:
                request = self._open[key]
                at = self._next(request, light=light)
                if (
                    at is not None
                    and len(batch) < most
                    and self._fits(request.waiting[at][0], batch, 0 if key in ending else served.get(key, 0))
                ):
                    item, future = request.waiting[at]
                    del request.waiting[at]
                    batch.append((item, future))
                    served[key] = served.get(key, 0) + item.frames
                    progress = True
        for key in turns:
            if key in served:
                request = self._open.pop(key)
                request.served, request.passed = request.served + 1, 0
                self._open[key] = request  # to the end of all turns
            else:
                self._open[key].passed += 1
        return batch

    def _next(self, request: _Open[Item], *, light: bool) -> int | None:
        """Return which of a request's waiting chunks may be taken; None for none."""
        if not light:
            return 0 if request.waiting else None
        return next((at for at, (item, _) in enumerate(request.waiting) if item.frames <= self.limits.share), None)

    @staticmethod
    def _frames(request: _Open[Item]) -> int:
        return sum(item.frames for item, _ in request.waiting)

    def _turns(self) -> list[Hashable]:
        waiting = [key for key, request in self._open.items() if request.waiting]
        # Stable: within a class, the order of turns holds.
        waiting.sort(key=lambda key: (self._open[key].bulk, min(self._open[key].served, FEW)))
        longest = max(waiting, key=lambda key: self._open[key].passed, default=None)
        if longest is not None and self._open[longest].passed >= MAX_SKIPS:
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
