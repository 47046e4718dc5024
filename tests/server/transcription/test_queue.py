from __future__ import annotations

import math
from collections import Counter, deque
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from localwhisper_server.transcription.queue import MAX_SKIPS, WIDEST, FairQueue, Full
from localwhisper_server.types import BatchLimits
from tests.server.items import SHORT, Item

LIMITS = BatchLimits(items=3, frames=4800, share=1800)
CAPACITY = 3
LONG, WHOLE = 1800, 3000  # frames of a piece of a file, of the full window


class QueueMachine(RuleBasedStateMachine):
    """Holds the queue to a model of it: what each request handed in and has not had back."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = LIMITS
        self.queue: FairQueue[Item] = FairQueue(capacity=CAPACITY, limits=LIMITS)
        self.waiting: dict[int, deque[tuple[Item, Future[Any]]]] = {}
        self.bulk: dict[int, bool] = {}
        self.new: list[int] = []  # never served, in the order they came
        self.passed_over: Counter[int] = Counter()
        self.requests = self.items = 0

    @property
    def room(self) -> int:
        """How many requests may be open."""
        return self.limits.items + CAPACITY

    @rule(bulk=st.booleans())
    def admit(self, bulk: bool) -> None:  # noqa: FBT001 - a strategy's value
        """As many as may be served and wait, and not one more."""
        if len(self.waiting) < self.room:
            self.queue.admit(self.requests, bulk=bulk)
            self.waiting[self.requests] = deque()
            self.bulk[self.requests] = bulk
            self.new.append(self.requests)
        else:
            with pytest.raises(Full):
                self.queue.admit(self.requests, bulk=bulk)
        self.requests += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), frames=st.lists(st.sampled_from([800, 900, 1200, 1800, 3000]), min_size=1, max_size=4))
    def put(self, data: st.DataObject, frames: list[int]) -> None:
        """An open request hands in chunks of any length."""
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        for count in frames:
            entry = (Item((request, self.items), count), Future[Any]())
            assert self.queue.put(request, [entry])
            self.waiting[request].append(entry)
            self.items += 1

    @rule()
    def put_by_a_stranger(self) -> None:
        """Chunks of a request that is not open are refused."""
        assert not self.queue.put(-1, [(Item((-1, 0)), Future())])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """What waited comes back, all of it; leaving twice gives nothing."""
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.leave(request) == [future for _, future in self.waiting.pop(request)]
        assert self.queue.leave(request) == []
        del self.passed_over[request]
        if request in self.new:
            self.new.remove(request)

    @rule(
        limits=st.sampled_from([LIMITS, BatchLimits(items=1, frames=3000, share=1500), BatchLimits(8, 100_000, 3000)])
    )
    def resize(self, limits: BatchLimits) -> None:
        """Batches may be made larger or smaller at any time."""
        self.queue.limits = self.limits = limits

    @rule()
    def take(self) -> None:
        """A batch keeps its limits and each request's order, wastes no place, and lets nobody wait for ever."""
        ready = [request for request, items in self.waiting.items() if items]
        batch = self.queue.take()
        assert bool(batch) == bool(ready)
        if not batch:
            return
        spent: Counter[int] = Counter()
        for entry in batch:
            assert entry == self.waiting[entry[0].number[0]].popleft()
            spent[entry[0].number[0]] += entry[0].frames
        new = set(self.new)
        self._check_limits([item for item, _ in batch], spent)
        self._check_turns(batch[0][0], ready, spent)
        self._check_full([item for item, _ in batch], spent, new)

    def _check_limits(self, items: list[Item], spent: Counter[int]) -> None:
        widest = max(item.frames for item in items)
        assert len(items) <= self.limits.items
        assert widest <= WIDEST * items[0].frames
        assert len(items) == 1 or len(items) * widest <= self.limits.frames
        served = Counter(item.number[0] for item in items)
        assert all(served[request] == 1 or frames <= self.limits.share for request, frames in spent.items())

    def _check_full(self, items: list[Item], spent: Counter[int], new: set[int]) -> None:
        """Whoever still waits would not have fitted, or is being served while the batch is a new one's."""
        if items[0].number[0] in new:
            assert set(spent) <= new
        for request, waiting in self.waiting.items():
            if waiting:
                item = waiting[0][0]
                widest = max(item.frames, *(other.frames for other in items), 0)
                assert (
                    len(items) == self.limits.items
                    or item.frames > WIDEST * items[0].frames
                    or (len(items) + 1) * widest > self.limits.frames
                    or (items[0].number[0] in new and request not in new)
                    or (request in spent and spent[request] + item.frames > self.limits.share)
                )

    def _check_turns(self, head: Item, ready: list[int], spent: Counter[int]) -> None:
        """The one passed over longest, else interactive before bulk, else new before served and in order."""
        first = head.number[0]
        most = max(self.passed_over[request] for request in ready)
        if most >= MAX_SKIPS:
            assert self.passed_over[first] == most
        elif any(not self.bulk[request] for request in ready):
            assert not self.bulk[first]
            new = [request for request in self.new if request in ready and not self.bulk[request]]
            assert not new or first == new[0]
        for request in ready:
            self.passed_over[request] = 0 if request in spent else self.passed_over[request] + 1
        self.new = [request for request in self.new if request not in spent]
        # The bound. Once passed over MAX_SKIPS times, a request can only be preceded by those passed over as often:
        # nobody joins these (who is served begins at 0, and all that wait count alike), and each batch that passes
        # it over is headed by one of them. There are at most all the others.
        assert all(count <= MAX_SKIPS + 8 + CAPACITY - 1 for count in self.passed_over.values())

    @invariant()
    def counts(self) -> None:
        """Neither a chunk nor a request is lost or made up."""
        assert len(self.queue) == sum(len(items) for items in self.waiting.values())
        assert self.queue.requests == len(self.waiting)

    @invariant()
    def estimates(self) -> None:
        """Who comes now waits for one turn of each interactive request at most."""
        share = self.limits.share / 100
        assert self.queue.seconds_ahead() == pytest.approx(
            sum(
                min(share, sum(item.seconds for item, _ in items))
                for request, items in self.waiting.items()
                if not self.bulk[request]
            )
        )


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=100, stateful_step_count=40)


def _queue(limits: BatchLimits = LIMITS, **waiting: int) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue(capacity=64, limits=limits)
    for request, count in waiting.items():
        _join(queue, request, *[LONG if request.startswith("hour") else SHORT] * count)
    return queue


def _join(queue: FairQueue[Item], request: str, *frames: int, bulk: bool = False) -> None:
    queue.admit(request, bulk=bulk)
    for number, count in enumerate(frames):
        queue.put(request, [(Item(f"{request}{number}", count), Future())])


def _names(queue: FairQueue[Item]) -> list[str]:
    return [item.number for item, _ in queue.take()]


@pytest.mark.parametrize("batches", [1, 3, 7, 20])
@pytest.mark.parametrize("frames", [SHORT, LONG, WHOLE])
@pytest.mark.parametrize("bulk", [False, True])
def test_a_short_message_is_in_the_very_next_batch(batches: int, frames: int, bulk: bool) -> None:  # noqa: FBT001
    """However long the file before it is, and however wide either of them."""
    queue: FairQueue[Item] = FairQueue(capacity=64, limits=LIMITS)
    _join(queue, "hour", *[LONG] * 100, bulk=bulk)
    for _ in range(batches):
        queue.take()
    _join(queue, "short", frames)
    assert "short0" in _names(queue)


@pytest.mark.parametrize("bulk", [False, True])
def test_a_short_message_is_in_the_very_next_batch_of_many_files(bulk: bool) -> None:  # noqa: FBT001
    """It comes first, or beside the one file that was passed over too often; and the files go on."""
    queue: FairQueue[Item] = FairQueue(capacity=64, limits=LIMITS)
    for file in "abcde":
        _join(queue, file, *[LONG] * 100, bulk=bulk)
    for _ in range(5):
        queue.take()
    served: Counter[str] = Counter()
    for number in range(100):
        _join(queue, f"short{number}.", SHORT)
        names = _names(queue)
        assert f"short{number}.0" in names
        served.update(name[0] for name in names)
        queue.leave(f"short{number}.")
    assert all(served[file] >= 100 // (MAX_SKIPS + 5) for file in "abcde")


def test_a_wide_one_is_ruled_out_by_a_narrow_head_for_one_batch_alone() -> None:
    """What came before it goes before it; what comes after it cannot."""
    queue = _queue(a=1)
    _join(queue, "wide", WHOLE)
    assert _names(queue) == ["a0"]
    for late in "bcd":
        _join(queue, late, SHORT)
    assert _names(queue)[0] == "wide0"


def test_a_wide_one_is_not_starved_by_narrow_ones() -> None:
    """Those already served go before it only until it has been passed over MAX_SKIPS times."""
    queue: FairQueue[Item] = FairQueue(capacity=64, limits=BatchLimits(items=1, frames=3000, share=1500))
    _join(queue, "wide", *[WHOLE] * 20)
    for batch in range(50):
        _join(queue, f"new{batch}.", SHORT)
        queue.take()
    assert len(queue) <= 50 + 20 - 50
    waiting = [request for request in queue._open.values() if request.waiting]
    assert max(request.passed for request in waiting) < MAX_SKIPS + len(waiting)


def test_waiting_is_bounded_by_the_number_of_others() -> None:
    """With n requests open and nobody new, each is served once in ceil(n / batch) batches."""
    queue = _queue(BatchLimits(items=2, frames=3000, share=1500), **dict.fromkeys("abcdefg", 10))
    for _ in range(5):
        served = [name[0] for _ in range(math.ceil(7 / 2)) for name in _names(queue)]
        assert set(served) == set("abcdefg")


def test_newcomers_do_not_starve_a_long_file() -> None:
    """One new short message a batch leaves the file at least one batch in MAX_SKIPS + 1, whatever their widths."""
    queue = _queue(hour=50)
    served = 0
    for number in range(20):
        _join(queue, f"n{number}.", SHORT)
        served += sum(name.startswith("hour") for name in _names(queue))
        queue.leave(f"n{number}.")
    assert served >= 20 // (MAX_SKIPS + 1)


def test_new_requests_are_served_in_the_order_they_came() -> None:
    """Those who go on arriving must not keep the first ones waiting."""
    queue = _queue(BatchLimits(items=2, frames=3000, share=1500), a=1, b=1, c=1)
    assert _names(queue) == ["a0", "b0"]
    _join(queue, "d", SHORT)
    assert _names(queue) == ["c0", "d0"]


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("items", [1, 2, 4])
def test_a_flood_of_new_requests_leaves_a_seat_for_the_old(items: int, bulk: bool) -> None:  # noqa: FBT001
    """Batches could be filled with new ones for ever; a long file still comes to its end, bulk or not."""
    queue: FairQueue[Item] = FairQueue(
        capacity=1000, limits=BatchLimits(items=items, frames=items * SHORT, share=items * SHORT)
    )
    for request in ("hour", "other"):
        _join(queue, request, *[SHORT] * 20, bulk=bulk)
    for _ in range(2):  # both have been served once
        queue.take()
    served: Counter[str] = Counter()
    for number in range(40):
        for twin in range(items):
            _join(queue, f"new{number}-{twin}-", SHORT)
        served.update(name[:3] for name in _names(queue))
    assert served["hou"] + served["oth"] >= 40 // (MAX_SKIPS + 1) - 1
    assert abs(served["hou"] - served["oth"]) <= 1
    assert served["new"] >= 40 * items // 2


def test_interactive_goes_before_bulk() -> None:
    """Whoever came first; what is left of a batch is for bulk."""
    queue: FairQueue[Item] = FairQueue(capacity=9, limits=BatchLimits(items=2, frames=3000, share=SHORT))
    _join(queue, "bulk", *[SHORT] * 9, bulk=True)
    _join(queue, "a", SHORT, SHORT)
    _join(queue, "b", SHORT)
    assert [_names(queue) for _ in range(3)] == [["b0", "a0"][::-1], ["a1", "bulk0"], ["bulk1"]]


def test_bulk_is_not_starved() -> None:
    """Two busy interactive files leave it one batch in MAX_SKIPS + 1."""
    queue: FairQueue[Item] = FairQueue(capacity=9, limits=BatchLimits(items=1, frames=3000, share=1500))
    _join(queue, "bulk", *[SHORT] * 9, bulk=True)
    _join(queue, "a", *[SHORT] * 50)
    _join(queue, "c", *[SHORT] * 50)
    names = [_names(queue)[0] for _ in range(30)]
    assert sum(name.startswith("bulk") for name in names) == 30 // (MAX_SKIPS + 1)


def test_a_lone_request_fills_the_batch_up_to_its_share() -> None:
    """With its own chunks, in order; a message that comes meanwhile must not wait for more."""
    queue = _queue(a=3)
    assert [_names(queue) for _ in range(3)] == [["a0", "a1"], ["a2"], []]


def test_a_request_near_its_end_may_have_the_batch() -> None:
    """What is left of it fits into one, so nobody waits for long; a long one is held to its share until then."""
    queue = _queue(BatchLimits(items=9, frames=9 * SHORT, share=SHORT, end=3 * SHORT), a=5)
    assert [_names(queue) for _ in range(4)] == [["a0"], ["a1"], ["a2", "a3", "a4"], []]


def test_a_chunk_above_every_limit_is_run_alone() -> None:
    """Somebody has to be first."""
    queue = _queue(BatchLimits(items=4, frames=SHORT, share=SHORT))
    _join(queue, "a", WHOLE, WHOLE)
    assert [_names(queue) for _ in range(3)] == [["a0"], ["a1"], []]


def test_what_is_left_of_earlier_chunks_goes_first() -> None:
    """Before the request's others, in its own order."""
    queue = _queue(BatchLimits(items=1, frames=10**6, share=10**6), a=2)
    assert queue.put("a", [(Item("left"), Future()), (Item("and left"), Future())], first=True)
    assert [_names(queue)[0] for _ in range(4)] == ["left", "and left", "a0", "a1"]


def test_a_light_batch_leaves_long_work_aside() -> None:
    """Of each request the first chunk within the share is taken; the others keep their places."""
    queue: FairQueue[Item] = FairQueue(capacity=9, limits=BatchLimits(items=9, frames=10**6, share=LONG))
    _join(queue, "a", WHOLE, SHORT, WHOLE)
    _join(queue, "b", WHOLE)
    assert queue.ready(light=True)
    assert [item.frames for item, _ in queue.take(light=True)] == [SHORT]
    assert not queue.ready(light=True)
    assert queue.take(light=True) == []
    assert queue.ready()
    assert [item.frames for item, _ in queue.take(most=1)] == [WHOLE]
    assert len(queue) == 2


def test_clearing_gives_everything_back() -> None:
    """What waited, of all requests, which are closed."""
    queue = _queue(a=2, b=1)
    assert len(queue.clear()) == 3
    assert (len(queue), queue.requests, queue.take()) == (0, 0, [])


def test_a_message_that_is_heard_again_goes_before_a_long_file() -> None:
    """Its second chunk is in the next batch, although the file was served longer ago."""
    queue: FairQueue[Item] = FairQueue(capacity=8, limits=BatchLimits(items=1, frames=10**6, share=LONG))
    queue.admit("film")
    queue.put("film", [(Item(("film", number), LONG), Future()) for number in range(20)])
    for _ in range(8):
        queue.take()
    queue.admit("message")
    for part in ("short window", "full window"):
        queue.put("message", [(Item(("message", part)), Future())])
        ((item, _),) = queue.take()
        assert item.number == ("message", part)
