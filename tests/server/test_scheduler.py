from __future__ import annotations

import threading
from collections import Counter, deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from localwhisper_server.errors import Busy, EngineFailed
from localwhisper_server.scheduler import FIRST_SPEED, PATIENCE, WIDEST, Full, Limits, Queue, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CAPACITY = 3
LIMITS = Limits(items=3, frames=4000, share=1500)
SECONDS = 10.0


@dataclass(frozen=True)
class Item:
    """A chunk that is only its cost; `name` tells it from others."""

    name: Any
    frames: int = 800
    seconds: float = 5.0


class QueueMachine(RuleBasedStateMachine):
    """Holds the queue to a model of it: what each request handed in and has not had back."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: Queue[Item] = Queue(capacity=CAPACITY, limits=LIMITS)
        self.waiting: dict[int, deque[tuple[Item, Future[Any]]]] = {}
        self.passed_over: Counter[int] = Counter()
        self.requests = self.items = 0

    @rule(bulk=st.booleans())
    def admit(self, bulk: bool) -> None:  # noqa: FBT001 - hypothesis names it
        """As many as may be served and wait, and not one more."""
        if len(self.waiting) < LIMITS.items + CAPACITY:
            self.queue.admit(self.requests, bulk=bulk)
            self.waiting[self.requests] = deque()
        else:
            with pytest.raises(Full):
                self.queue.admit(self.requests, bulk=bulk)
        self.requests += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), costs=st.lists(st.sampled_from([800, 1000, 1800, 3000]), min_size=1, max_size=4))
    def put(self, data: st.DataObject, costs: list[int]) -> None:
        """An open request hands in chunks."""
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        for frames in costs:
            entry = Item((request, self.items), frames), Future[Any]()
            assert self.queue.put(request, *entry)
            self.waiting[request].append(entry)
            self.items += 1

    @rule()
    def put_by_a_stranger(self) -> None:
        """Chunks of a request that is not open are not taken."""
        assert not self.queue.put(-1, Item("x"), Future())

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """What waited comes back, all of it; leaving twice gives nothing."""
        request = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.leave(request) == [future for _, future in self.waiting.pop(request)]
        assert self.queue.leave(request) == []
        del self.passed_over[request]

    @rule()
    def clear(self) -> None:
        """Everybody leaves."""
        waited = [future for entries in self.waiting.values() for _, future in entries]
        assert sorted(map(id, self.queue.clear())) == sorted(map(id, waited))
        self.waiting.clear()
        self.passed_over.clear()

    @rule()
    def take(self) -> None:
        """A batch within its limits, in each request's order, that lets nobody wait for ever."""
        ready = [request for request, entries in self.waiting.items() if entries]
        batch = self.queue.take()
        assert bool(batch) == bool(ready)
        for item, future in batch:
            assert (item, future) == self.waiting[item.name[0]].popleft()
        served = Counter(item.name[0] for item, _ in batch)
        frames = [item.frames for item, _ in batch]
        if len(batch) > 1:
            assert len(batch) <= LIMITS.items
            assert max(frames) * len(frames) <= LIMITS.frames
            assert max(frames) <= WIDEST * frames[0]
        for request, count in served.items():
            own = sum(item.frames for item, _ in batch if item.name[0] == request)
            assert count == 1 or own <= LIMITS.share
        for request in ready:
            self.passed_over[request] = 0 if request in served else self.passed_over[request] + 1
        # Whoever was passed over too often comes first, of several the one that waited longest.
        assert all(count <= PATIENCE + LIMITS.items + CAPACITY for count in self.passed_over.values())

    @invariant()
    def counts(self) -> None:
        """Neither a chunk nor a request is lost or made up."""
        assert len(self.queue) == sum(len(entries) for entries in self.waiting.values())
        assert self.queue.requests == len(self.waiting)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=30)


def _queue(items: int = 2, **waiting: int) -> Queue[Item]:
    queue: Queue[Item] = Queue(capacity=1000, limits=Limits(items=items, frames=10**9, share=10**9))
    for request, count in waiting.items():
        _admit(queue, request, count)
    return queue


def _admit(queue: Queue[Item], request: Any, count: int = 1, *, bulk: bool = False, frames: int = 800) -> None:
    queue.admit(request, bulk=bulk)
    for number in range(count):
        assert queue.put(request, Item(f"{request}{number}", frames), Future())


def _taken(queue: Queue[Item]) -> list[str]:
    return [item.name for item, _ in queue.take()]


def test_a_short_message_is_in_the_very_next_batch() -> None:
    """However long the file before it is."""
    queue = _queue(hour=100)
    queue.take()
    _admit(queue, "short")
    assert "short0" in _taken(queue)


def test_a_short_message_does_not_wait_for_wide_windows() -> None:
    """It begins the batch, and what is much longer stays out of that."""
    queue = _queue()
    _admit(queue, "hour", 9, frames=3000)
    queue.take()
    _admit(queue, "short", frames=800)
    assert _taken(queue) == ["short0"]


def test_waiting_is_bounded_by_the_number_of_others() -> None:
    """With n requests open and nobody new, each is served once in ceil(n / batch) batches."""
    queue = _queue(**dict.fromkeys("abcdefg", 10))
    for _ in range(4):
        served = [name[0] for _ in range(4) for name in _taken(queue)]
        assert set(served) == set("abcdefg")


def test_new_requests_are_served_in_the_order_they_came() -> None:
    """Those who go on arriving must not keep the first ones waiting."""
    queue = _queue(a=1, b=1, c=1)
    assert _taken(queue) == ["a0", "b0"]
    _admit(queue, "d")
    assert _taken(queue) == ["c0", "d0"]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_flood_of_new_requests_leaves_a_turn_for_the_old(batch: int) -> None:
    """Batches could be filled with new ones for ever; a long file still comes to its end."""
    queue = _queue(batch, hour=40, other=40)
    for _ in range(2):  # both have been served once
        queue.take()
    served: Counter[str] = Counter()
    for number in range(60):
        for twin in range(batch):
            _admit(queue, f"{number}-{twin}-new")
        served.update(name.strip("0123456789-") for name in _taken(queue))
    assert served["hour"] + served["other"] >= 60 // (PATIENCE + 1)
    assert abs(served["hour"] - served["other"]) <= 1
    assert served["new"] >= 60 * batch // 2


def test_interactive_goes_before_bulk_which_is_not_forgotten() -> None:
    """Whoever is in no hurry waits, but not for ever."""
    queue = _queue(1)
    _admit(queue, "bulk", 5, bulk=True)
    _admit(queue, "now", 30)
    order = [name[:3] for _ in range(20) for name in _taken(queue)]
    assert order[:PATIENCE] == ["now"] * PATIENCE
    assert 2 <= order.count("bul") <= 5


def test_one_request_takes_no_more_than_its_share() -> None:
    """Of a batch that a short message may have to wait for."""
    queue: Queue[Item] = Queue(capacity=9, limits=Limits(items=8, frames=10**6, share=1700))
    _admit(queue, "hour", 9, frames=800)
    assert len(queue.take()) == 2
    _admit(queue, "other", 9, frames=800)
    assert Counter(name[:4] for name in _taken(queue)) == {"hour": 2, "othe": 2}


def test_a_chunk_over_every_limit_still_has_its_turn() -> None:
    """Alone."""
    queue: Queue[Item] = Queue(capacity=9, limits=Limits(items=8, frames=1000, share=500))
    _admit(queue, "big", 2, frames=3000)
    assert (_taken(queue), _taken(queue), _taken(queue)) == (["big0"], ["big1"], [])


def test_seconds_ahead_count_one_turn_of_each() -> None:
    """A long file's whole rest is not before a newcomer; bulk is not at all."""
    queue: Queue[Item] = Queue(capacity=9, limits=Limits(items=8, frames=10**6, share=1000))
    _admit(queue, "hour", 100)
    _admit(queue, "short", 1)
    _admit(queue, "bulk", 100, bulk=True)
    assert queue.seconds_ahead() == 10.0 + 5.0


class Engine:
    """Doubles numbers; raises what it is handed; stands still while `gate` is shut."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.together, self.inside = 0, 0

    def run(self, items: Sequence[Item]) -> list[Any]:
        """Run one batch."""
        self.inside += 1
        self.together = max(self.together, self.inside)
        self.batches.append([item.name for item in items])
        self.entered.release()
        assert self.gate.wait(SECONDS)
        self.inside -= 1
        for item in items:
            if isinstance(item.name, Exception):
                raise item.name
        return [item.name * 2 for item in items]


class Simple:
    """A ticket that takes names instead of items."""

    def __init__(self, ticket: Any) -> None:
        self._ticket = ticket
        self.close = ticket.close

    def submit(self, name: Any) -> Future[Any]:
        """Hand in a chunk of that name."""
        future: Future[Any] = self._ticket.submit(Item(name))
        return future


@pytest.fixture
def engine() -> Engine:
    """Give an engine double."""
    return Engine()


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[..., Scheduler[Any, Any]]]:
    """Give a function that starts a scheduler on it; all are closed at the end."""
    started: list[Scheduler[Any, Any]] = []

    def begin(batch: int = 2, **settings: Any) -> Scheduler[Any, Any]:
        limits = Limits(items=batch, frames=10**9, share=10**9)
        defaults: dict[str, Any] = {"capacity": 8, "limits": limits, "clock": lambda: 0.0}
        started.append(Scheduler(settings.pop("run", engine.run), **defaults | settings))
        return started[-1]

    yield begin
    engine.gate.set()
    for scheduler in started:
        assert scheduler.close(SECONDS)


def test_each_future_gets_its_own_result(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """From many requests at once, through one engine that is never called twice at a time."""
    scheduler = start(capacity=100)
    tickets = [Simple(scheduler.admit()) for _ in range(10)]
    futures = [(number, tickets[number % 10].submit(number)) for number in range(100)]
    assert [future.result(SECONDS) for _, future in futures] == [number * 2 for number, _ in futures]
    assert engine.together == 1
    assert max(map(len, engine.batches)) <= 2


def test_one_bad_chunk_takes_no_neighbour_along(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """The others of its batch are run again, alone; it gets EngineFailed, and its cause stays in the log."""
    engine.gate.clear()
    scheduler = start(batch=3)
    ticket = Simple(scheduler.admit())
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
    ticket = Simple(scheduler.admit())
    for _ in range(2):
        with pytest.raises(EngineFailed):
            ticket.submit(1).result(SECONDS)


def test_cancelled_chunks_are_skipped(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """They are not paid for."""
    engine.gate.clear()
    ticket = Simple(start(batch=1).admit())
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
    leaving, staying = Simple(scheduler.admit()), Simple(scheduler.admit())
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
    ticket = Simple(scheduler.admit())
    if late == "after leaving":
        ticket.close()
    else:
        scheduler.close(SECONDS)
    assert ticket.submit(1).cancelled()


def test_closing_ends_after_the_batch_in_flight(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """What is being decoded gets its result, what waits is cancelled; a long batch is not waited for."""
    engine.gate.clear()
    scheduler = start(batch=1)
    ticket = Simple(scheduler.admit())
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
    tickets = [Simple(scheduler.admit()), Simple(scheduler.admit())]
    assert scheduler.requests == 2
    for ticket in tickets:
        ticket.submit(1)
    with pytest.raises(Busy) as refused:
        scheduler.admit()
    assert refused.value.retry_after >= 1
    tickets[0].close()
    scheduler.admit()


def test_busy_of_the_engine_is_passed_on(start: Callable[..., Scheduler[Any, Any]]) -> None:
    """An engine out of memory says when to come back; running each chunk alone would not help."""
    scheduler = start()

    def full(_: Any) -> Any:
        calls.append(1)
        raise Busy("no memory", retry_after=60)

    calls: list[int] = []
    ticket = Simple(start(run=full).admit())
    with pytest.raises(Busy) as refused:
        ticket.submit(1).result(SECONDS)
    assert refused.value.retry_after == 60
    assert len(calls) == 1
    assert scheduler.requests == 0


def test_the_wait_is_estimated_from_what_batches_took(
    engine: Engine, start: Callable[..., Scheduler[Any, Any]]
) -> None:
    """Seconds of sound ahead by the speed of late; a guess until something is measured."""
    ticking = iter(range(0, 1000, 5))  # each batch of five seconds takes five seconds on this clock
    engine.gate.clear()
    scheduler = start(batch=1, clock=lambda: float(next(ticking)))
    assert (scheduler.queue_seconds, scheduler.speed) == (0.0, FIRST_SPEED)
    ticket = Simple(scheduler.admit())
    futures = [ticket.submit(number) for number in range(3)]
    assert engine.entered.acquire(timeout=SECONDS)
    assert scheduler.queue_seconds == pytest.approx(15 / FIRST_SPEED)
    engine.gate.set()
    for future in futures:
        future.result(SECONDS)
    engine.gate.clear()
    while engine.entered.acquire(blocking=False):
        pass
    ticket.submit(9)
    assert engine.entered.acquire(timeout=SECONDS)
    assert scheduler.speed == pytest.approx(1 + (FIRST_SPEED - 1) * 0.75**3)
    assert scheduler.queue_seconds == pytest.approx(5 / scheduler.speed)
    engine.gate.set()


def test_admission_looks_at_the_wait(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """Longer than it may be: 503, with the time until it is not."""
    engine.gate.clear()
    scheduler = start(capacity=100, max_wait=1.5)
    ticket = Simple(scheduler.admit())
    ticket.submit(1)
    scheduler.admit()
    for number in range(3):
        ticket.submit(number)
    assert scheduler.queue_seconds == pytest.approx(20 / FIRST_SPEED)
    with pytest.raises(Busy, match="the wait is about 4 s") as refused:
        scheduler.admit()
    assert refused.value.retry_after == 3  # 2.5, in whole seconds


def test_limits_can_change(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """From the next batch on."""
    engine.gate.clear()
    scheduler = start(batch=1)
    ticket = Simple(scheduler.admit())
    futures = [ticket.submit(number) for number in range(4)]
    assert engine.entered.acquire(timeout=SECONDS)
    scheduler.set_limits(Limits(items=3, frames=10**9, share=10**9))
    engine.gate.set()
    for future in futures:
        future.result(SECONDS)
    assert engine.batches == [[0], [1, 2, 3]]


@pytest.mark.parametrize("failing", [False, True], ids=["well", "failing"])
def test_idling_is_told_once(
    engine: Engine,
    start: Callable[..., Scheduler[Any, Any]],
    failing: bool,  # noqa: FBT001 - a table's column
) -> None:
    """After so long without work, so that the model can go; work that comes then is done as ever."""
    idled = threading.Semaphore(0)

    def idle() -> None:
        idled.release()
        if failing:
            raise RuntimeError("cannot unload")

    scheduler = start(idle=idle, idle_seconds=0.02)
    assert idled.acquire(timeout=SECONDS)
    assert not idled.acquire(timeout=0.1)  # not again and again
    assert Simple(scheduler.admit()).submit(4).result(SECONDS) == 8
    assert idled.acquire(timeout=SECONDS)
