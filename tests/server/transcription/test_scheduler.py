from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server import observer
from localwhisper_server.errors import Busy, EngineFailed
from localwhisper_server.transcription.scheduler import FIRST_SPEED, Scheduler
from localwhisper_server.types import BatchLimits
from tests.server.items import Item

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SECONDS = 10.0


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """Doubles numbers, in `took` seconds a batch; raises what it is handed; stands still while `gate` is shut."""

    def __init__(self, clock: Clock) -> None:
        self.batches: list[list[Any]] = []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.together, self.inside = 0, 0
        self.clock, self.took = clock, 1.0

    def run(self, items: Sequence[Item]) -> list[Any]:
        """Run one batch."""
        self.inside += 1
        self.together = max(self.together, self.inside)
        self.batches.append([item.number for item in items])
        self.entered.release()
        assert self.gate.wait(SECONDS)
        self.clock.now += self.took
        self.inside -= 1
        for item in items:
            if isinstance(item.number, Exception):
                raise item.number
        return [item.number * 2 for item in items]

    def wait(self) -> None:
        """Return when a batch has come."""
        assert self.entered.acquire(timeout=SECONDS)


@pytest.fixture
def clock() -> Clock:
    """Give a clock that the engine moves."""
    return Clock()


@pytest.fixture
def engine(clock: Clock) -> Engine:
    """Give an engine double."""
    return Engine(clock)


def _limits(items: int) -> BatchLimits:
    return BatchLimits(items=items, frames=100_000, share=100_000)


@pytest.fixture
def start(engine: Engine, clock: Clock) -> Iterator[Callable[..., Scheduler[Any, Any]]]:
    """Give a function that starts a scheduler on it; all are closed at the end."""
    started: list[Scheduler[Any, Any]] = []

    def begin(**settings: Any) -> Scheduler[Any, Any]:
        defaults: dict[str, Any] = {"capacity": 8, "limits": _limits(settings.pop("batch", 2)), "clock": clock}
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
    futures = [(number, tickets[number % 10].submit([Item(number)])[0]) for number in range(100)]
    assert [future.result(SECONDS) for _, future in futures] == [number * 2 for number, _ in futures]
    assert engine.together == 1
    assert max(map(len, engine.batches)) <= 2


def test_one_bad_chunk_takes_no_neighbour_along(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """The others of its batch are run again, alone; it gets EngineFailed, and its cause stays in the log."""
    engine.gate.clear()
    scheduler = start(batch=3)
    ticket = scheduler.admit()
    first = ticket.submit([Item(0)])[0]
    engine.wait()  # the next three will be one batch
    futures = [ticket.submit([Item(number)])[0] for number in (1, RuntimeError("CUDA error: illegal instruction"), 3)]
    engine.gate.set()
    assert first.result(SECONDS) == 0
    assert [futures[0].result(SECONDS), futures[2].result(SECONDS)] == [2, 6]
    with pytest.raises(EngineFailed) as failure:
        futures[1].result(SECONDS)
    assert "CUDA" not in failure.value.message
    assert ticket.submit([Item(5)])[0].result(SECONDS) == 10  # and life goes on


def test_an_error_that_knows_its_answer_is_passed_on(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """To the whole batch, which is not run again: a device whose memory is taken would only be asked once more."""
    engine.gate.clear()
    scheduler = start(batch=3)
    ticket = scheduler.admit()
    ticket.submit([Item(0)])[0]
    engine.wait()
    busy = Busy("no memory", retry_after=60)
    futures = [ticket.submit([Item(number)])[0] for number in (1, busy)]
    engine.gate.set()
    assert [future.exception(SECONDS) for future in futures] == [busy, busy]
    assert engine.batches == [[0], [1, busy]]


def test_an_engine_that_loses_a_result_does_not_stop_the_thread(start: Callable[..., Scheduler[Any, Any]]) -> None:
    """A fault of the engine's is an error of the request, never a hang of all that come after."""
    scheduler = start(run=lambda _: [])
    ticket = scheduler.admit()
    for _ in range(2):
        with pytest.raises(EngineFailed):
            ticket.submit([Item(1)])[0].result(SECONDS)


def test_cancelled_chunks_are_skipped(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """They are not paid for."""
    engine.gate.clear()
    ticket = start(batch=1).admit()
    running, dropped, kept = (ticket.submit([Item(number)])[0] for number in (1, 2, 3))
    engine.wait()
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
    running = leaving.submit([Item(1)])[0]
    engine.wait()
    waiting, other = leaving.submit([Item(2)])[0], staying.submit([Item(3)])[0]
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
    """NullObserver would ever answer it; a caller must not wait."""
    scheduler = start()
    ticket = scheduler.admit()
    if late == "after leaving":
        ticket.close()
    else:
        scheduler.close(SECONDS)
    assert ticket.submit([Item(1)])[0].cancelled()


def test_closing_ends_after_the_batch_in_flight(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """What is being decoded gets its result, what waits is cancelled; a long batch is not waited for."""
    engine.gate.clear()
    scheduler = start(batch=1)
    ticket = scheduler.admit()
    running, waiting = ticket.submit([Item(1)])[0], ticket.submit([Item(2)])[0]
    engine.wait()
    assert scheduler.close(timeout=0.01) is False
    engine.gate.set()
    assert scheduler.close(SECONDS) is True
    assert running.result(SECONDS) == 2
    assert waiting.cancelled()


def test_batches_can_be_made_smaller(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """While it runs; what waits is batched anew."""
    engine.gate.clear()
    scheduler = start(batch=3)
    ticket = scheduler.admit()
    futures = [ticket.submit([Item(number)])[0] for number in range(4)]
    engine.wait()
    scheduler.set_limits(_limits(1))
    engine.gate.set()
    for future in futures:
        future.result(SECONDS)
    assert engine.batches[-1] == [3]
    assert {len(batch) for batch in engine.batches[1:]} == {1}


def test_the_batch_in_flight_is_told(engine: Engine, clock: Clock, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """How long it has been running, for whoever watches over the engine."""
    engine.gate.clear()
    scheduler = start()
    assert scheduler.running_seconds is None
    future = scheduler.admit().submit([Item(1)])[0]
    engine.wait()
    clock.now += 7.0
    assert scheduler.running_seconds == 7.0
    engine.gate.set()
    future.result(SECONDS)
    scheduler.close(SECONDS)
    assert scheduler.running_seconds is None


# Several workers


def test_two_workers_run_two_batches_side_by_side(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """Never three; and each future still gets its own result."""
    scheduler = start(workers=2, capacity=100)
    engine.gate.clear()
    tickets = [scheduler.admit() for _ in range(10)]
    futures = [(number, tickets[number % 10].submit([Item(number)])[0]) for number in range(100)]
    engine.wait()
    engine.wait()
    assert not engine.entered.acquire(timeout=0.05)
    engine.gate.set()
    assert [future.result(SECONDS) for _, future in futures] == [number * 2 for number, _ in futures]
    assert engine.together == 2


def test_what_comes_together_is_shared_by_who_is_idle(
    engine: Engine, start: Callable[..., Scheduler[Any, Any]]
) -> None:
    """Four chunks are two batches of two where both workers are free, and one of four where one is."""
    scheduler = start(workers=2, batch=8)
    engine.gate.clear()
    ticket = scheduler.admit()
    first = ticket.submit([Item(number) for number in range(4)])
    engine.wait()
    engine.wait()
    second = ticket.submit([Item(number) for number in range(4, 8)])
    engine.gate.set()
    assert [future.result(SECONDS) for future in first + second] == [2 * number for number in range(8)]
    assert sorted(map(len, engine.batches[:2])) == [2, 2]
    assert sorted(number for batch in engine.batches for number in batch) == list(range(8))


def test_who_finds_a_free_worker_does_not_wait(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """Whatever the others are busy with."""
    scheduler = start(workers=2)
    engine.gate.clear()
    ticket = scheduler.admit()
    ticket.submit([Item(1)])
    engine.wait()
    assert scheduler.queue_seconds == 0.0
    ticket.submit([Item(2)])
    engine.wait()
    assert scheduler.queue_seconds > 0.0


def test_nobody_is_idle_while_another_works(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """Or the model would leave the memory under a batch."""
    idle = threading.Event()
    scheduler = start(workers=2, idle=lambda _: idle.set())
    assert idle.wait(SECONDS)
    engine.gate.clear()
    time.sleep(0.01)  # until the other worker has said so, too
    future = scheduler.admit().submit([Item(1)])[0]
    engine.wait()
    idle.clear()
    assert not idle.wait(0.1)
    engine.gate.set()
    assert future.result(SECONDS) == 2
    assert idle.wait(SECONDS)


def test_one_worker_is_kept_from_what_takes_long(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """While the other is at such a chunk, only short ones are taken; then the next long one."""
    scheduler = start(workers=2, limits=BatchLimits(items=1, frames=10**6, share=1000))
    engine.gate.clear()
    futures = scheduler.admit().submit([Item("one", 3000), Item("two", 3000), Item("short", 800)])
    engine.wait()
    engine.wait()
    assert sorted(number for batch in engine.batches for number in batch) == ["one", "short"]
    engine.gate.set()
    assert [future.result(SECONDS) for future in futures] == ["oneone", "twotwo", "shortshort"]


# Admission


def test_admission_is_bounded(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """One more than fits gets Busy with an estimate; a place that gets free can be had."""
    engine.gate.clear()
    scheduler = start(capacity=1, batch=1)
    tickets = [scheduler.admit()]
    assert not scheduler.full
    tickets.append(scheduler.admit())
    assert scheduler.full
    assert scheduler.requests == 2
    for ticket in tickets:
        ticket.submit([Item(1, 2000)])[0]
    engine.wait()
    with pytest.raises(Busy, match="full") as refused:
        scheduler.admit()
    assert refused.value.retry_after == 40 / FIRST_SPEED  # what runs and what waits
    tickets[0].close()
    scheduler.admit()


def test_the_wait_follows_what_batches_took(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """Nothing waits, nothing to wait for; then seconds of sound by the seconds of sound decoded in one lately."""
    engine.gate.clear()
    engine.took = 4.0
    scheduler = start(batch=1)
    assert scheduler.queue_seconds == 0.0
    assert scheduler.speed == FIRST_SPEED
    ticket = scheduler.admit()
    futures = [ticket.submit([Item(number, 800)])[0] for number in range(3)]
    engine.wait()
    assert scheduler.queue_seconds == pytest.approx(24 / FIRST_SPEED)  # the one in flight counts
    engine.gate.set()
    for future in futures:
        future.result(SECONDS)
    engine.gate.clear()
    while engine.entered.acquire(blocking=False):
        pass
    ticket.submit([Item(9, 800)])[0]
    engine.wait()
    # Each batch moves the estimate by a quarter of the way to 8 s in 4 s.
    assert scheduler.speed == pytest.approx(2 + (FIRST_SPEED - 2) * 0.75**3)
    assert scheduler.queue_seconds == pytest.approx(8 / scheduler.speed)


def test_who_asks_for_room_is_told_as_who_asks_for_a_place(
    engine: Engine, start: Callable[..., Scheduler[Any, Any]]
) -> None:
    """Without getting one."""
    engine.gate.clear()
    scheduler = start(capacity=0, batch=1)
    scheduler.require_room()
    scheduler.require_room()
    ticket = scheduler.admit()
    with pytest.raises(Busy, match="full"):
        scheduler.require_room()
    ticket.close()
    scheduler.require_room()
    assert scheduler.requests == 0


def test_a_device_that_refuses_everything_is_not_fast(
    engine: Engine, start: Callable[..., Scheduler[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed leaves the estimate alone, and is logged as of the request it failed for."""
    engine.took = 0.001
    scheduler = start(batch=1)
    ids = []
    monkeypatch.setattr(
        "localwhisper_server.transcription.scheduler.logger.exception", lambda *_: ids.append(observer.request_id.get())
    )
    token = observer.request_id.set("req_unlucky")
    try:
        future = scheduler.admit().submit([Item(RuntimeError("an illegal memory access"), 800)])[0]
    finally:
        observer.request_id.reset(token)
    assert isinstance(future.exception(SECONDS), EngineFailed)
    assert scheduler.speed == FIRST_SPEED
    assert ids == ["req_unlucky"]


def test_a_batch_without_duration_is_no_division_by_zero(
    engine: Engine, start: Callable[..., Scheduler[Any, Any]]
) -> None:
    """Some clocks tick slowly."""
    engine.took = 0.0
    ticket = start(batch=1).admit()
    for number in range(3):
        ticket.submit([Item(number)])[0].result(SECONDS)


def test_who_would_wait_too_long_is_told_when_to_come_back(
    engine: Engine, start: Callable[..., Scheduler[Any, Any]]
) -> None:
    """Before any work is done for them: Retry-After is when the wait will be as short as it may be."""
    engine.gate.clear()
    scheduler = start(capacity=100, batch=1, max_wait=10.0)
    tickets = [scheduler.admit() for _ in range(3)]
    for number, ticket in enumerate(tickets):
        ticket.submit([Item(number, 3000)])[
            0
        ]  # half a minute each: six seconds at the first guess of five times as fast
    engine.wait()
    assert scheduler.queue_seconds == pytest.approx(18.0)
    with pytest.raises(Busy, match="about 18 s") as refused:
        scheduler.admit()
    assert refused.value.retry_after == 8
    assert refused.value.headers == {"Retry-After": "8"}
    assert scheduler.requests == 3
    tickets[2].close()
    with pytest.raises(Busy):
        scheduler.admit()
    tickets[1].close()
    scheduler.admit()


def test_an_hour_long_file_closes_no_door(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """A message waits for its share of a batch, not for its end; bulk work is not waited for at all."""
    engine.gate.clear()
    scheduler = start(limits=BatchLimits(items=1, frames=3000, share=1500), max_wait=7.0)
    for bulk in (False, True):
        ticket = scheduler.admit(bulk=bulk)
        for number in range(240):
            ticket.submit([Item(number, 1500)])[0]
    engine.wait()
    assert scheduler.queue_seconds == pytest.approx(30 / FIRST_SPEED)
    scheduler.admit()


# Idleness


def test_idle_is_called_when_there_is_no_work(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """And again after the next work; an error in it is logged and does no harm."""
    calls = threading.Semaphore(0)
    count = 0

    def idle(_: float) -> None:
        nonlocal count
        count += 1
        calls.release()
        raise RuntimeError("cannot let go")

    scheduler = start(idle=idle)
    for times in (1, 2):
        assert calls.acquire(timeout=SECONDS)
        assert not calls.acquire(timeout=0.02)
        assert count == times
        assert scheduler.admit().submit([Item(times)])[0].result(SECONDS) == 2 * times


def test_idle_says_when_it_wants_to_be_called_again(start: Callable[..., Scheduler[Any, Any]]) -> None:
    """With the seconds since the last batch, until it has nothing more to do."""
    calls: list[float] = []
    done = threading.Event()

    def idle(seconds: float) -> float | None:
        calls.append(seconds)
        if len(calls) < 3:
            return 0.02
        done.set()
        return None

    start(idle=idle)
    assert done.wait(SECONDS)
    assert calls[2] >= calls[1] + 0.01 >= calls[0] + 0.02
    time.sleep(0.05)
    assert len(calls) == 3


def test_callers_are_admitted_while_it_goes_idle(start: Callable[..., Scheduler[Any, Any]]) -> None:
    """Letting go of a model takes its time."""
    entered, gate = threading.Event(), threading.Event()

    def idle(_: float) -> None:
        entered.set()
        assert gate.wait(SECONDS)

    scheduler = start(idle=idle)
    assert entered.wait(SECONDS)
    future = scheduler.admit().submit([Item(1)])[0]
    assert scheduler.requests == 1
    gate.set()
    assert future.result(SECONDS) == 2


def test_idleness_counts_from_the_last_batch_of_any_worker(
    engine: Engine, start: Callable[..., Scheduler[Any, Any]]
) -> None:
    """A worker that had nothing to do for long does not send away what the other has just used."""
    calls: list[float] = []

    def idle(seconds: float) -> float:
        calls.append(seconds)
        return 0.3 - seconds

    scheduler = start(workers=2, idle=idle)
    ticket = scheduler.admit()
    for _ in range(8):
        ticket.submit([Item(1)])[0].result(SECONDS)
        time.sleep(0.1)
    assert max(calls) < 0.3


def test_the_wait_counts_what_comes_before_the_queue(engine: Engine, start: Callable[..., Scheduler[Any, Any]]) -> None:
    """A free engine is no use to a request whose recording is not prepared: it is told, or turned away."""
    ahead = [4.0]
    scheduler = start(ahead=lambda: ahead[0], max_wait=10.0)
    assert scheduler.queue_seconds == 4.0
    scheduler.admit().close()
    ahead[0] = 11.0
    with pytest.raises(Busy, match="about 11 s") as refused:
        scheduler.require_room()
    assert refused.value.retry_after == 1.0
    with pytest.raises(Busy):
        scheduler.admit()
