from __future__ import annotations

import math
from collections import Counter, deque
from concurrent.futures import Future

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from localwhisper_server.transcription.queue import LONGEST_RATIO, MAX_SKIPS, FairQueue, Job
from localwhisper_server.types import BatchLimits
from tests.server.engine_double import SHORT, Item

LIMITS = BatchLimits(items=3, frames=4800, share=1800)
CAPACITY = 3
LONG, WHOLE = 1800, 3000  # frames of a piece of a file, of the full window


def _job(item: Item) -> Job:
    return Job(item, item.frames, Future())


class QueueMachine(RuleBasedStateMachine):
    """Compares the queue with a model of it: what each request submitted and has not got back."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue(LIMITS)
        self.waiting: dict[int, deque[Job]] = {}
        self.bulk: dict[int, bool] = {}
        self.new: list[int] = []  # in no batch yet, in the order they came
        self.skipped: Counter[int] = Counter()
        self.requests = self.items = 0

    @rule(bulk=st.booleans())
    def admit(self, bulk: bool) -> None:  # noqa: FBT001 - a strategy's value
        """Open a request; not more than the model of order bounds."""
        if len(self.queue.open) < LIMITS.items + CAPACITY:
            self.queue.admit(self.requests, bulk=bulk)
            self.waiting[self.requests] = deque()
            self.bulk[self.requests] = bulk
            self.new.append(self.requests)
            self.requests += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), frames=st.lists(st.sampled_from([800, 900, 1200, 1800, 3000]), min_size=1, max_size=4))
    def put(self, data: st.DataObject, frames: list[int]) -> None:
        """An open request hands in chunks of any length."""
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        for count in frames:
            job = _job(Item((request, self.items), count))
            assert self.queue.put(request, [job])
            self.waiting[request].append(job)
            self.items += 1

    @rule()
    def put_without_a_request(self) -> None:
        """Chunks of a request that is not open are refused."""
        assert not self.queue.put(-1, [_job(Item((-1, 0)))])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """What waited comes back, all of it; leaving twice gives nothing."""
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.leave(request) == list(self.waiting.pop(request))
        assert self.queue.leave(request) == []
        del self.skipped[request]
        if request in self.new:
            self.new.remove(request)

    @rule()
    def take(self) -> None:
        """A batch keeps its limits and each request's order, and wastes no place; no request waits for ever."""
        ready = [request for request, items in self.waiting.items() if items]
        batch = self.queue.take()
        assert bool(batch) == bool(ready)
        if not batch:
            return
        spent: Counter[int] = Counter()
        for job in batch:
            assert job is self.waiting[job.chunk.number[0]].popleft()
            spent[job.chunk.number[0]] += job.frames
        new = set(self.new)
        self._check_limits([job.chunk for job in batch], spent)
        self._check_order(batch[0].chunk, ready, spent)
        self._check_full([job.chunk for job in batch], spent, new)

    def _check_limits(self, items: list[Item], spent: Counter[int]) -> None:
        widest = max(item.frames for item in items)
        assert len(items) <= LIMITS.items
        assert widest <= LONGEST_RATIO * items[0].frames
        assert len(items) == 1 or len(items) * widest <= LIMITS.frames
        served = Counter(item.number[0] for item in items)
        assert all(served[request] == 1 or frames <= LIMITS.share for request, frames in spent.items())

    def _check_full(self, items: list[Item], spent: Counter[int], new: set[int]) -> None:
        """A chunk that still waits did not fit, or a new request began the batch and its own is not new."""
        if items[0].number[0] in new:
            assert set(spent) <= new
        for request, waiting in self.waiting.items():
            if waiting:
                item = waiting[0].chunk
                widest = max(item.frames, *(other.frames for other in items), 0)
                assert (
                    len(items) == LIMITS.items
                    or item.frames > LONGEST_RATIO * items[0].frames
                    or (len(items) + 1) * widest > LIMITS.frames
                    or (items[0].number[0] in new and request not in new)
                    or (request in spent and spent[request] + item.frames > LIMITS.share)
                )

    def _check_order(self, head: Item, ready: list[int], spent: Counter[int]) -> None:
        """The request skipped most often is first, else interactive before bulk, else new requests in order."""
        first = head.number[0]
        most = max(self.skipped[request] for request in ready)
        if most >= MAX_SKIPS:
            assert self.skipped[first] == most
        elif any(not self.bulk[request] for request in ready):
            assert not self.bulk[first]
            new = [request for request in self.new if request in ready and not self.bulk[request]]
            assert not new or first == new[0]
        for request in ready:
            self.skipped[request] = 0 if request in spent else self.skipped[request] + 1
        self.new = [request for request in self.new if request not in spent]
        # A request that was skipped MAX_SKIPS times is preceded only by requests skipped as often. Their number never
        # grows: a request in a batch starts again at 0, and all waiting ones count alike. Each batch that skips the
        # request begins with one of them, and they are at most all others.
        assert all(count <= MAX_SKIPS + LIMITS.items + CAPACITY - 1 for count in self.skipped.values())

    @invariant()
    def counts(self) -> None:
        """Neither a chunk nor a request is lost or made up."""
        assert self.queue.waiting == sum(len(items) for items in self.waiting.values())
        assert len(self.queue.open) == len(self.waiting)

    @invariant()
    def estimates(self) -> None:
        """A new request waits for one share of each interactive request."""
        share = LIMITS.share / 100
        assert self.queue.seconds_ahead() == pytest.approx(
            sum(
                min(share, sum(job.chunk.seconds for job in jobs))
                for request, jobs in self.waiting.items()
                if not self.bulk[request]
            )
        )


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=100, stateful_step_count=40)


def _queue(limits: BatchLimits = LIMITS, **waiting: int) -> FairQueue:
    queue = FairQueue(limits)
    for request, count in waiting.items():
        _join(queue, request, *[LONG if request.startswith("hour") else SHORT] * count)
    return queue


def _join(queue: FairQueue, request: str, *frames: int, bulk: bool = False) -> None:
    queue.admit(request, bulk=bulk)
    for number, count in enumerate(frames):
        queue.put(request, [_job(Item(f"{request}{number}", count))])


def _names(queue: FairQueue) -> list[str]:
    return [job.chunk.number for job in queue.take()]


@pytest.mark.parametrize("batches", [1, 3, 7, 20])
@pytest.mark.parametrize("frames", [SHORT, LONG, WHOLE])
@pytest.mark.parametrize("bulk", [False, True])
def test_a_short_message_is_in_the_very_next_batch(batches: int, frames: int, bulk: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    """However long the file before it is, and however long the chunks of either are."""
    queue = FairQueue(LIMITS)
    _join(queue, "hour", *[LONG] * 100, bulk=bulk)
    for _ in range(batches):
        queue.take()
    _join(queue, "short", frames)
    assert "short0" in _names(queue)


@pytest.mark.parametrize("bulk", [False, True])
def test_a_short_message_is_in_the_very_next_batch_of_many_files(bulk: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    """It comes first, or beside the one file that was skipped too often; and the files go on."""
    queue = FairQueue(LIMITS)
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


def test_a_long_chunk_misses_one_batch_of_short_chunks_at_most() -> None:
    """Only requests that came before it go before it."""
    queue = _queue(a=1)
    _join(queue, "wide", WHOLE)
    assert _names(queue) == ["a0"]
    for late in "bcd":
        _join(queue, late, SHORT)
    assert _names(queue)[0] == "wide0"


def test_a_long_chunk_does_not_wait_for_ever_for_short_ones() -> None:
    """Other requests go before it until it was skipped MAX_SKIPS times."""
    queue = FairQueue(BatchLimits(items=1, frames=3000, share=1500))
    _join(queue, "wide", *[WHOLE] * 20)
    served = 0
    for batch in range(50):
        _join(queue, f"new{batch}.", SHORT)
        served += _names(queue)[0].startswith("wide")
    assert queue.waiting <= 50 + 20 - 50
    assert served >= 50 // (MAX_SKIPS + 2)


def test_waiting_is_bounded_by_the_number_of_others() -> None:
    """With n requests open and none new, each is in one of any ceil(n / batch) batches."""
    queue = _queue(BatchLimits(items=2, frames=3000, share=1500), **dict.fromkeys("abcdefg", 10))
    for _ in range(5):
        served = [name[0] for _ in range(math.ceil(7 / 2)) for name in _names(queue)]
        assert set(served) == set("abcdefg")


def test_new_requests_do_not_stop_a_long_file() -> None:
    """With one new short message for each batch, the file is in one of MAX_SKIPS + 1 batches at least."""
    queue = _queue(hour=50)
    served = 0
    for number in range(20):
        _join(queue, f"n{number}.", SHORT)
        served += sum(name.startswith("hour") for name in _names(queue))
        queue.leave(f"n{number}.")
    assert served >= 20 // (MAX_SKIPS + 1)


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("items", [1, 2, 4])
def test_a_flood_of_new_requests_leaves_places_for_older_ones(items: int, bulk: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    """New requests could fill every batch; a long file still comes to its end, bulk or not."""
    queue = FairQueue(BatchLimits(items=items, frames=items * SHORT, share=items * SHORT))
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


def test_bulk_requests_do_not_wait_for_ever() -> None:
    """Beside two long interactive files, it is in one of MAX_SKIPS + 1 batches."""
    queue = FairQueue(BatchLimits(items=1, frames=3000, share=1500))
    _join(queue, "bulk", *[SHORT] * 9, bulk=True)
    _join(queue, "a", *[SHORT] * 50)
    _join(queue, "c", *[SHORT] * 50)
    names = [_names(queue)[0] for _ in range(30)]
    assert sum(name.startswith("bulk") for name in names) == 30 // (MAX_SKIPS + 1)


def test_a_lone_request_fills_the_batch_up_to_its_share() -> None:
    """With its own chunks, in order; a message that comes meanwhile waits for no more than that."""
    queue = _queue(a=3)
    assert [_names(queue) for _ in range(3)] == [["a0", "a1"], ["a2"], []]


def test_a_request_near_its_end_may_have_the_batch() -> None:
    """Its last chunks fit into one batch, so other requests wait for it once only; before, its share applies."""
    queue = _queue(BatchLimits(items=9, frames=9 * SHORT, share=SHORT, end=3 * SHORT), a=5)
    assert [_names(queue) for _ in range(4)] == [["a0"], ["a1"], ["a2", "a3", "a4"], []]


def test_a_chunk_above_every_limit_is_run_alone() -> None:
    """It has to be decoded at some time."""
    queue = _queue(BatchLimits(items=4, frames=SHORT, share=SHORT))
    _join(queue, "a", WHOLE, WHOLE)
    assert [_names(queue) for _ in range(3)] == [["a0"], ["a1"], []]


def test_what_is_left_of_earlier_chunks_goes_first() -> None:
    """Before the request's others, in its own order."""
    queue = _queue(BatchLimits(items=1, frames=10**6, share=10**6), a=2)
    assert queue.put("a", [_job(Item("left")), _job(Item("and left"))], first=True)
    assert [_names(queue)[0] for _ in range(4)] == ["left", "and left", "a0", "a1"]


def test_a_batch_within_the_share_leaves_long_chunks_waiting() -> None:
    """Of each request the first chunk within the share is taken; the others keep their places."""
    queue = FairQueue(BatchLimits(items=9, frames=10**6, share=LONG))
    _join(queue, "a", WHOLE, SHORT, WHOLE)
    _join(queue, "b", WHOLE)
    assert [job.frames for job in queue.take(short_first=True)] == [SHORT]
    assert [job.frames for job in queue.take(short_first=True, most=1)] == [WHOLE]  # no other waits
    assert queue.waiting == 2


def test_clearing_returns_every_chunk() -> None:
    """All requests are closed, and their waiting chunks are returned."""
    queue = _queue(a=2, b=1)
    assert len(queue.clear()) == 3
    assert (queue.waiting, len(queue.open), queue.take()) == (0, 0, [])


def test_a_chunk_that_is_decoded_again_goes_before_a_long_file() -> None:
    """It is in the next batch, although the file was in none for longer."""
    queue = FairQueue(BatchLimits(items=1, frames=10**6, share=LONG))
    queue.admit("film")
    queue.put("film", [_job(Item(("film", number), LONG)) for number in range(20)])
    for _ in range(8):
        queue.take()
    queue.admit("message")
    for part in ("short window", "full window"):
        queue.put("message", [_job(Item(("message", part)))])
        (job,) = queue.take()
        assert job.chunk.number == ("message", part)


def test_late_requests_are_those_not_begun_that_would_not_end_in_time() -> None:
    """In their order. A request that was in a batch is never late, whatever it still has waiting."""
    queue = FairQueue(BatchLimits(items=1, frames=10_000, share=10_000))
    for key in ("begun", "soon", "later"):
        _join(queue, key, 500)
        if key == "begun":
            queue.take()
    queue.put("begun", [_job(Item("more", 100_000))])
    assert queue.late(100.0) == []
    assert queue.late(7.0) == ["later"]
    assert queue.late(0.0) == ["soon", "later"]
