from __future__ import annotations

import threading
from collections import Counter, deque
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from localwhisper_server.errors import Busy, EngineFailed
from localwhisper_server.scheduler import PATIENCE, Full, Queue, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BATCH, CAPACITY = 2, 3
SECONDS = 10.0


class QueueMachine(RuleBasedStateMachine):
    """Holds the queue to a model of it: what each request handed in and has not had back."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: Queue[tuple[int, int]] = Queue(capacity=CAPACITY, batch=BATCH)
        self.waiting: dict[int, deque[tuple[int, int]]] = {}
        self.passed_over: Counter[int] = Counter()
        self.requests = self.items = 0

    @rule()
    def admit(self) -> None:
        """As many as may be served and wait, and not one more."""
        if len(self.waiting) < BATCH + CAPACITY:
            self.queue.admit(self.requests)
            self.waiting[self.requests] = deque()
        else:
            with pytest.raises(Full):
                self.queue.admit(self.requests)
        self.requests += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), count=st.integers(1, 4))
    def put(self, data: st.DataObject, count: int) -> None:
        """An open request hands in items."""
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        for _ in range(count):
            self.queue.put(request, (request, self.items))
            self.waiting[request].append((request, self.items))
            self.items += 1

    @rule()
    def put_by_a_stranger(self) -> None:
        """Items of a request that is not open are dropped."""
        self.queue.put(-1, (-1, 0))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """What waited comes back, all of it; leaving twice gives nothing."""
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.leave(request) == list(self.waiting.pop(request))
        assert self.queue.leave(request) == []
        del self.passed_over[request]

    @rule()
    def take(self) -> None:
        """A batch is as full as it can be, in each request's order, and lets nobody wait for ever."""
        ready = [request for request, items in self.waiting.items() if items]
        batch = self.queue.take()
        assert len(batch) == min(BATCH, sum(len(items) for items in self.waiting.values()))
        for item in batch:
            assert item == self.waiting[item[0]].popleft()
        served = Counter(request for request, _ in batch)
        if len(ready) >= len(batch):
            assert set(served.values()) <= {1}  # nobody twice while others wait
        for request in ready:
            self.passed_over[request] = 0 if request in served else self.passed_over[request] + 1
        # Each of the others goes first once, and new ones at most PATIENCE times before one that was served.
        assert all(count <= (BATCH + CAPACITY) * (PATIENCE + 1) for count in self.passed_over.values())

    @invariant()
    def counts(self) -> None:
        """Neither an item nor a request is lost or made up."""
        assert len(self.queue) == sum(len(items) for items in self.waiting.values())
        assert self.queue.requests == len(self.waiting)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=30)


def _queue(**waiting: int) -> Queue[str]:
    queue: Queue[str] = Queue(capacity=64, batch=2)
    for request, count in waiting.items():
        queue.admit(request)
        for number in range(count):
            queue.put(request, f"{request}{number}")
    return queue


def test_a_short_message_is_in_the_very_next_batch() -> None:
    """However long the file before it is."""
    queue = _queue(hour=100)
    queue.take()
    queue.admit("short")
    queue.put("short", "short0")
    assert "short0" in queue.take()


def test_waiting_is_bounded_by_the_number_of_others() -> None:
    """With n requests open and nobody new, each is served once in ceil(n / batch) batches."""
    queue = _queue(**dict.fromkeys("abcdefg", 10))
    for _ in range(5):
        served = [item[0] for _ in range(4) for item in queue.take()]
        assert set(served) == set("abcdefg")


def test_newcomers_do_not_starve_a_long_file() -> None:
    """One new short message a batch leaves it a place in each."""
    queue = _queue(hour=50)
    served = 0
    for number in range(20):
        queue.admit(number)
        queue.put(number, f"n{number}")
        served += sum(item.startswith("hour") for item in queue.take())
        queue.leave(number)
    assert served == 20


def test_new_requests_are_served_in_the_order_they_came() -> None:
    """Those who go on arriving must not keep the first ones waiting."""
    queue = _queue(a=1, b=1, c=1)
    assert queue.take() == ["a0", "b0"]
    queue.admit("d")
    queue.put("d", "d0")
    assert queue.take() == ["c0", "d0"]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_flood_of_new_requests_leaves_a_seat_for_the_old(batch: int) -> None:
    """Batches could be filled with new ones for ever; a long file still comes to its end."""
    queue: Queue[str] = Queue(capacity=1000, batch=batch)
    for request, count in (("hour", 20), ("other", 20)):
        queue.admit(request)
        for number in range(count):
            queue.put(request, f"{request}{number}")
    for _ in range(2):  # both have been served once
        queue.take()
    served: Counter[str] = Counter()
    for number in range(40):
        for twin in range(batch):
            queue.admit((number, twin))
            queue.put((number, twin), "new")
        served.update(item.rstrip("0123456789") for item in queue.take())
    assert served["hour"] + served["other"] >= 40 // (PATIENCE + 1) - 1
    assert abs(served["hour"] - served["other"]) <= 1
    assert served["new"] >= 40 * batch * PATIENCE // (PATIENCE + 1) - batch


def test_a_lone_request_fills_the_batch() -> None:
    """With its own items, in order."""
    queue = _queue(a=3)
    assert (queue.take(), queue.take(), queue.take()) == (["a0", "a1"], ["a2"], [])


class Engine:
    """Doubles numbers; raises what it is handed; stands still while `gate` is shut."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.together, self.inside = 0, 0

    def run(self, items: Sequence[Any]) -> list[Any]:
        """Run one batch."""
        self.inside += 1
        self.together = max(self.together, self.inside)
        self.batches.append(list(items))
        self.entered.release()
        assert self.gate.wait(SECONDS)
        self.inside -= 1
        for item in items:
            if isinstance(item, Exception):
                raise item
        return [item * 2 for item in items]


@pytest.fixture
def engine() -> Engine:
    """Give an engine double."""
    return Engine()


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[..., Scheduler[Any, Any]]]:
    """Give a function that starts a scheduler on it; all are closed at the end."""
    started: list[Scheduler[Any, Any]] = []

    def begin(**settings: Any) -> Scheduler[Any, Any]:
        defaults: dict[str, Any] = {"capacity": 8, "batch": 2, "clock": lambda: 0.0}
        started.append(Scheduler(settings.pop("run", engine.run), **defaults | settings))
        return started[-1]

    yield begin
    engine.gate.set()
    for scheduler in started:
        assert scheduler.close(SECONDS)


def test_each_future_gets_its_own_result(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """From many requests at once, through one engine that is never called twice at a time."""
    scheduler = start(capacity=100)
    tickets = [scheduler.admit() for _ in range(10)]
    futures = [(number, tickets[number % 10].submit(number)) for number in range(100)]
    assert [future.result(SECONDS) for _, future in futures] == [number * 2 for number, _ in futures]
    assert engine.together == 1
    assert max(map(len, engine.batches)) <= 2


def test_one_bad_chunk_takes_no_neighbour_along(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """The others of its batch are run again, alone; it gets EngineFailed, and its cause stays in the log."""
    engine.gate.clear()
    scheduler = start(batch=3)
    ticket = scheduler.admit()
    first = ticket.submit(0)
    assert engine.entered.acquire(timeout=SECONDS)  # the next three will be one batch
    futures = [ticket.submit(item) for item in (1, RuntimeError("CUDA failed with error out of memory"), 3)]
    engine.gate.set()
    assert first.result(SECONDS) == 0
    assert [futures[0].result(SECONDS), futures[2].result(SECONDS)] == [2, 6]
    with pytest.raises(EngineFailed) as failure:
        futures[1].result(SECONDS)
    assert "CUDA" not in failure.value.message
    assert ticket.submit(5).result(SECONDS) == 10  # and life goes on


def test_an_engine_that_loses_a_result_does_not_stop_the_thread(start: Callable[..., Scheduler[Any, Any]]) -> None:
    """A fault of the engine's is an error of the request, never a hang of all that come after."""
    scheduler = start(run=lambda _: [])
    ticket = scheduler.admit()
    for _ in range(2):
        with pytest.raises(EngineFailed):
            ticket.submit(1).result(SECONDS)


def test_cancelled_chunks_are_skipped(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """They are not paid for."""
    engine.gate.clear()
    ticket = start(batch=1).admit()
    running, dropped, kept = (ticket.submit(number) for number in (1, 2, 3))
    assert engine.entered.acquire(timeout=SECONDS)
    assert dropped.cancel()
    assert not running.cancel()
    engine.gate.set()
    assert kept.result(SECONDS) == 6
    assert engine.batches == [[1], [3]]


def test_a_closed_ticket_takes_its_chunks_along(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """Those that wait are cancelled; the one in the engine ends; others are untouched."""
    engine.gate.clear()
    scheduler = start(batch=1)
    leaving, staying = scheduler.admit(), scheduler.admit()
    running = leaving.submit(1)
    assert engine.entered.acquire(timeout=SECONDS)
    waiting, other = leaving.submit(2), staying.submit(3)
    leaving.close()
    leaving.close()
    assert waiting.cancelled()
    with pytest.raises(CancelledError):
        waiting.result(0)
    engine.gate.set()
    assert (running.result(SECONDS), other.result(SECONDS)) == (2, 6)
    assert engine.batches == [[1], [3]]


@pytest.mark.parametrize("late", ["after leaving", "after closing"])
def test_a_chunk_handed_in_too_late_is_cancelled(late: str, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """Nobody would ever answer it; a caller must not wait."""
    scheduler = start()
    ticket = scheduler.admit()
    if late == "after leaving":
        ticket.close()
    else:
        scheduler.close(SECONDS)
    assert ticket.submit(1).cancelled()


def test_closing_ends_after_the_batch_in_flight(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """What is being decoded gets its result, what waits is cancelled; a long batch is not waited for."""
    engine.gate.clear()
    scheduler = start(batch=1)
    ticket = scheduler.admit()
    running, waiting = ticket.submit(1), ticket.submit(2)
    assert engine.entered.acquire(timeout=SECONDS)
    assert scheduler.close(timeout=0.01) is False
    engine.gate.set()
    assert scheduler.close(SECONDS) is True
    assert running.result(SECONDS) == 2
    assert waiting.cancelled()


def test_admission_is_bounded(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """One more than fits gets Busy with an estimate; a place that gets free can be had."""
    engine.gate.clear()
    scheduler = start(capacity=1, batch=1)
    tickets = [scheduler.admit(), scheduler.admit()]
    assert scheduler.requests == 2
    for ticket in tickets:
        ticket.submit(1)
    with pytest.raises(Busy) as refused:
        scheduler.admit()
    assert refused.value.retry_after >= 1
    tickets[0].close()
    scheduler.admit()


def test_the_wait_is_estimated_from_what_batches_took(
    engine: Engine, start: Callable[..., Scheduler[Any, Any]]
) -> None:
    """Nothing waits, nothing to wait for; then chunks times the seconds one took lately."""
    ticking = iter(range(0, 1000, 4))  # each batch takes four seconds on this clock
    engine.gate.clear()
    scheduler = start(batch=1, clock=lambda: float(next(ticking)))
    assert scheduler.queue_seconds == 0.0
    ticket = scheduler.admit()
    futures = [ticket.submit(number) for number in range(3)]
    assert engine.entered.acquire(timeout=SECONDS)
    assert scheduler.running == 1
    assert scheduler.queue_seconds == pytest.approx(3.0)  # one second each, until something is known
    engine.gate.set()
    for future in futures:
        future.result(SECONDS)
    engine.gate.clear()
    while engine.entered.acquire(blocking=False):
        pass
    ticket.submit(9)
    assert engine.entered.acquire(timeout=SECONDS)
    assert scheduler.queue_seconds == pytest.approx(4 - 3 * 0.75**3)
    engine.gate.set()
