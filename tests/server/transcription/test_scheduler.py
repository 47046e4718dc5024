from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any
from unittest.mock import Mock, call

import pytest

from localwhisper_server import observer
from localwhisper_server.errors import Busy, EngineFailed, Stopping
from localwhisper_server.transcription.queue import FEW_BATCHES, MESSAGE_SECONDS
from localwhisper_server.transcription.scheduler import (
    EXPECT_SECONDS,
    FINISH_AT_MOST_SECONDS,
    FINISH_SECONDS,
    FIRST_SPEED,
    RESERVED_SECONDS,
    Scheduler,
)
from localwhisper_server.types import BatchLimits
from localwhisper_server.whisper.chunks import ChunkResult
from tests.server.engine_double import SECONDS, EngineDouble, Item, twice

Start = Callable[..., Scheduler]


@pytest.fixture
def engine() -> EngineDouble:
    """Give an engine double that takes a second for a batch."""
    engine = EngineDouble(answer=twice)
    engine.took = 1.0
    return engine


@pytest.fixture
def start(engine: EngineDouble) -> Iterator[Start]:
    """Give a function that starts a scheduler on it; all are closed at the end."""
    started: list[Scheduler] = []

    def begin(*, batch: int = 2, **settings: Any) -> Scheduler:
        limits = BatchLimits(items=batch, frames=100_000, share=100_000)
        defaults: dict[str, Any] = {"run": engine.run, "capacity": 8, "limits": limits, "clock": engine.clock}
        started.append(Scheduler(**defaults | settings))
        return started[-1]

    yield begin
    engine.gate.set()
    for scheduler in started:
        assert scheduler.close(SECONDS)


def _numbers(engine: EngineDouble) -> list[list[Any]]:
    return [[item.number for item in batch] for batch in engine.batches]


def test_each_future_gets_its_own_result(engine: EngineDouble, start: Start) -> None:
    """Many requests at once share one engine, which is never called twice at a time."""
    scheduler = start(capacity=100)
    tickets = [scheduler.admit() for _ in range(10)]
    futures = [(number, tickets[number % 10].submit([Item(number)])[0]) for number in range(100)]
    assert [future.result(SECONDS) for _, future in futures] == [number * 2 for number, _ in futures]
    assert engine.together == 1
    assert max(map(len, engine.batches)) <= 2


def test_one_bad_chunk_fails_no_other(engine: EngineDouble, start: Start) -> None:
    """The chunks of its batch are run again, each alone. The bad one gets EngineFailed; the cause is only logged."""
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
    assert ticket.submit([Item(5)])[0].result(SECONDS) == 10  # the worker goes on


def test_a_server_error_fails_the_whole_batch(engine: EngineDouble, start: Start) -> None:
    """The batch is not run again: a device without memory would only fail once more."""
    engine.gate.clear()
    scheduler = start(batch=3)
    ticket = scheduler.admit()
    ticket.submit([Item(0)])
    engine.wait()
    busy = Busy("no memory", retry_after=60)
    futures = [ticket.submit([Item(number)])[0] for number in (1, busy)]
    engine.gate.set()
    assert [future.exception(SECONDS) for future in futures] == [busy, busy]
    assert _numbers(engine) == [[0], [1, busy]]


def test_a_missing_result_fails_its_request_alone(start: Start) -> None:
    """The worker goes on with the next batch."""
    scheduler = start(run=lambda _: [])
    ticket = scheduler.admit()
    for _ in range(2):
        with pytest.raises(EngineFailed):
            ticket.submit([Item(1)])[0].result(SECONDS)


def test_cancelled_chunks_are_skipped(engine: EngineDouble, start: Start) -> None:
    """The engine does not decode them."""
    engine.gate.clear()
    ticket = start(batch=1).admit()
    running, dropped, kept = (ticket.submit([Item(number)])[0] for number in (1, 2, 3))
    engine.wait()
    assert dropped.cancel()
    assert not running.cancel()
    engine.gate.set()
    assert kept.result(SECONDS) == 6
    assert _numbers(engine) == [[1], [3]]


def test_closing_a_ticket_cancels_its_chunks(engine: EngineDouble, start: Start) -> None:
    """Waiting chunks are cancelled, the running one ends, and those of other tickets are untouched."""
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
    assert _numbers(engine) == [[1], [3]]


def test_a_chunk_submitted_too_late_gets_an_end(start: Start) -> None:
    """Otherwise its caller would wait for ever."""
    scheduler = start()
    leaving, staying = scheduler.admit(), scheduler.admit()
    leaving.close()
    assert leaving.submit([Item(1)])[0].cancelled()
    scheduler.close(SECONDS)
    assert isinstance(staying.submit([Item(1)])[0].exception(SECONDS), Stopping)


def test_closing_ends_after_the_batch_in_flight(engine: EngineDouble, start: Start) -> None:
    """The running batch gives its results, waiting chunks are cancelled, and the timeout is kept."""
    engine.gate.clear()
    scheduler = start(batch=1)
    ticket = scheduler.admit()
    running, waiting = ticket.submit([Item(1)])[0], ticket.submit([Item(2)])[0]
    engine.wait()
    assert scheduler.close(timeout=0.01) is False
    engine.gate.set()
    assert scheduler.close(SECONDS) is True
    assert running.result(SECONDS) == 2
    assert isinstance(waiting.exception(0), Stopping)


# Several workers


def test_two_workers_run_two_batches_side_by_side(engine: EngineDouble, start: Start) -> None:
    """Never three, and each future still gets its own result."""
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


def test_idle_workers_share_what_waits(engine: EngineDouble, start: Start) -> None:
    """Four chunks are two batches of two if both workers are idle."""
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
    assert sorted(item.number for item in engine.chunks) == list(range(8))


def test_an_idle_worker_means_no_wait(engine: EngineDouble, start: Start) -> None:
    """Whatever the other worker is doing. It is known how long that has been, so that a stuck engine is noticed."""
    scheduler = start(workers=2)
    assert scheduler.running_seconds is None
    engine.gate.clear()
    ticket = scheduler.admit()
    ticket.submit([Item(1)])
    engine.wait()
    assert scheduler.queue_seconds == 0.0
    engine.clock.now += 7.0
    ticket.submit([Item(2)])
    engine.wait()
    assert scheduler.queue_seconds > 0.0
    assert scheduler.running_seconds == 7.0
    engine.gate.set()
    scheduler.close(SECONDS)
    assert scheduler.running_seconds is None


def test_idle_is_not_called_while_another_worker_works(engine: EngineDouble, start: Start) -> None:
    """Otherwise the model would be unloaded under a running batch."""
    idle = threading.Semaphore(0)
    scheduler = start(workers=2, idle=lambda _: idle.release())
    for _ in range(2):  # once for each worker
        assert idle.acquire(timeout=SECONDS)
    engine.gate.clear()
    future = scheduler.admit().submit([Item(1)])[0]
    engine.wait()
    assert not idle.acquire(timeout=0.1)
    engine.gate.set()
    assert future.result(SECONDS) == 2
    assert idle.acquire(timeout=SECONDS)


def test_one_worker_is_kept_for_short_chunks(engine: EngineDouble, start: Start) -> None:
    """While the other decodes a long chunk, it takes only short ones."""
    scheduler = start(workers=2, limits=BatchLimits(items=1, frames=10**6, share=1000))
    engine.gate.clear()
    futures = scheduler.admit().submit([Item(1, 3000), Item(2, 3000), Item(3, 800)])
    engine.wait()
    engine.wait()
    assert sorted(item.number for item in engine.chunks) == [1, 3]
    engine.gate.set()
    assert [future.result(SECONDS) for future in futures] == [2, 4, 6]


# Admission


def test_admission_is_bounded(engine: EngineDouble, start: Start) -> None:
    """One request too many gets Busy with an estimate, also before its upload; when another leaves, there is room."""
    engine.gate.clear()
    scheduler = start(capacity=1, batch=1)
    scheduler.require_room()
    tickets = [scheduler.admit()]
    assert not scheduler.full
    tickets.append(scheduler.admit())
    assert scheduler.full
    for ticket in tickets:
        ticket.submit([Item(1, 2000)])[0]
    engine.wait()
    for ask in (scheduler.admit, scheduler.require_room):
        with pytest.raises(Busy, match="full") as refused:
            ask()
        assert refused.value.retry_after == 40 / FIRST_SPEED  # what runs and what waits
    assert scheduler.requests == 2
    tickets[0].close()
    scheduler.require_room()
    scheduler.admit()


def test_the_wait_follows_what_batches_took(engine: EngineDouble, start: Start) -> None:
    """Nothing at first; then the seconds of waiting audio, divided by the speed of the last batches."""
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
    engine.close_gate()
    ticket.submit([Item(9, 800)])[0]
    engine.wait()
    # Each batch moves the estimate by a quarter of the way to 8 s in 4 s.
    assert scheduler.speed == pytest.approx(2 + (FIRST_SPEED - 2) * 0.75**3)
    assert scheduler.queue_seconds == pytest.approx(8 / scheduler.speed)


def test_a_failed_batch_does_not_count_for_the_speed(engine: EngineDouble, start: Start) -> None:
    """A device that fails at once is not fast. The log names the request that failed."""
    engine.took = 0.001
    scheduler, ids = start(batch=1), list[str]()
    handler, log = logging.Handler(), logging.getLogger("localwhisper_server.transcription.scheduler")
    handler.emit = lambda _: ids.append(observer.request_id.get())  # type: ignore[method-assign]
    log.addHandler(handler)
    token = observer.request_id.set("req_unlucky")
    try:
        future = scheduler.admit().submit([Item(RuntimeError("an illegal memory access"), 800)])[0]
        assert isinstance(future.exception(SECONDS), EngineFailed)
    finally:
        observer.request_id.reset(token)
        log.removeHandler(handler)
    assert scheduler.speed == FIRST_SPEED
    assert ids == ["req_unlucky"]


def test_a_batch_without_duration_is_no_division_by_zero(engine: EngineDouble, start: Start) -> None:
    """A clock may tick slowly."""
    engine.took = 0.0
    ticket = start(batch=1).admit()
    for number in range(3):
        ticket.submit([Item(number)])[0].result(SECONDS)


def test_a_request_that_would_wait_too_long_is_refused(engine: EngineDouble, start: Start) -> None:
    """Before any work is done for it. Retry-After is when the wait will be short enough."""
    engine.gate.clear()
    scheduler = start(capacity=100, batch=1, max_wait=10.0)
    tickets = [scheduler.admit() for _ in range(3)]
    for number, ticket in enumerate(tickets):
        ticket.submit([Item(number, 3000)])  # half a minute each: six seconds at the first guess of the speed
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


def test_an_hour_long_file_counts_with_its_share_alone(engine: EngineDouble, start: Start) -> None:
    """A message does not wait for the end of a long file, and not for bulk requests at all."""
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


def test_idle_is_called_when_there_is_no_work(engine: EngineDouble, start: Start) -> None:
    """And again after the next batch; an error in it is logged, and the worker goes on."""
    calls = threading.Semaphore(0)
    count = 0

    def idle(_: float) -> None:
        nonlocal count
        count += 1
        calls.release()
        raise RuntimeError("the model cannot be unloaded")

    scheduler = start(idle=idle)
    for times in (1, 2):
        assert calls.acquire(timeout=SECONDS)
        assert not calls.acquire(timeout=0.02)
        assert count == times
        assert scheduler.admit().submit([Item(times)])[0].result(SECONDS) == 2 * times


def test_idle_says_when_to_call_it_again(engine: EngineDouble, start: Start) -> None:
    """With the seconds since the last batch by the clock, until it returns None."""
    calls: list[float] = []
    done = threading.Event()

    def idle(seconds: float) -> float | None:
        calls.append(seconds)
        engine.clock.now += 5.0
        if len(calls) < 3:
            return 0.01
        done.set()
        return None

    scheduler = start(idle=idle)
    assert done.wait(SECONDS)
    assert scheduler.close(SECONDS)
    assert calls == [0.0, 5.0, 10.0]


def test_requests_are_admitted_while_the_model_is_unloaded(start: Start) -> None:
    """Unloading takes long, and holds no lock."""
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


def test_idleness_counts_from_the_last_batch_of_any_worker(engine: EngineDouble, start: Start) -> None:
    """A worker without a batch for hours does not unload a model that the other has just used."""
    engine.took = 3600.0
    calls: list[float] = []
    called = threading.Semaphore(0)

    def idle(seconds: float) -> float:
        calls.append(seconds)
        called.release()
        return 0.01

    ticket = start(workers=2, idle=idle).admit()
    for _ in range(8):
        ticket.submit([Item(1)])[0].result(SECONDS)
    for _ in range(4):
        assert called.acquire(timeout=SECONDS)
    assert max(calls) < 3600.0


def test_the_wait_counts_what_comes_before_the_queue(engine: EngineDouble, start: Start) -> None:
    """An idle engine does not help a request whose recording has to wait for its preparation."""
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


# The end, failures and the observer


def test_stopping_refuses_late_requests_first_and_then_all(engine: EngineDouble, start: Start) -> None:
    """The running batch is refused with all others; its results are dropped."""
    engine.gate.clear()
    scheduler = start(batch=1)
    first, second, third = (scheduler.admit() for _ in range(3))
    (running,) = first.submit([Item(1)])
    engine.wait()
    (waiting,), (late,) = second.submit([Item(2)]), third.submit([Item(3, 100_000)])
    refusal = Busy("stopping", retry_after=9)
    scheduler.send_away(refusal, later_than=30.0)
    assert late.exception(SECONDS) is refusal
    assert not waiting.done()
    scheduler.refuse(refusal)
    assert waiting.exception(SECONDS) is refusal
    assert running.exception(SECONDS) is refusal
    assert first.submit([Item(4)])[0].exception(SECONDS) is refusal
    engine.gate.set()
    assert scheduler.close(SECONDS)
    assert scheduler.running_seconds is None


def test_batches_that_fail_in_a_row_are_counted(start: Start) -> None:
    """Until one gives a result."""
    scheduler = start(batch=1)
    ticket, counted = scheduler.admit(), []
    for number in (RuntimeError("an illegal memory access"), RuntimeError("again"), 1, RuntimeError("and again")):
        ticket.submit([Item(number)])[0].exception(SECONDS)
        counted.append(scheduler.failures)
    assert counted == [1, 2, 0, 1]


def test_the_observer_is_told_of_batches(engine: EngineDouble, start: Start) -> None:
    """How long each chunk waited, how full the batch was, its audio and time, and rejected texts; not of failures."""
    notes, rejected = Mock(), ChunkResult(None, (), rejected="speed")
    engine.gate.clear()
    ticket = start(observer=notes).admit()
    futures = ticket.submit([Item(1)])
    engine.wait()
    futures += ticket.submit([Item(RuntimeError("failed"))])
    engine.clock.now += 2.0
    engine.gate.set()
    for future in futures:
        future.exception(SECONDS)
    assert notes.mock_calls == [call.waited(0.0), call.decoded(1, 2, 8.0, 3.0), call.waited(3.0)]
    other = start(observer=notes, run=lambda chunks: [rejected for _ in chunks])
    assert other.admit().submit([Item(1)])[0].result(SECONDS) is rejected
    assert notes.mock_calls[-1] == call.retried("speed")


def test_a_worker_is_kept_for_messages_beside_a_long_recording(engine: EngineDouble, start: Start) -> None:
    """For a while after a message came; then the long recording has all workers again."""
    engine.took = 0.0
    scheduler = start(workers=2, batch=1)
    long = scheduler.admit()
    for number in range(FEW_BATCHES):
        assert long.submit([Item(number)])[0].result(SECONDS) == 2 * number
    engine.close_gate()
    message = scheduler.admit()
    waiting = long.submit([Item(10), Item(11)])
    engine.wait()
    answer = message.submit([Item(20)])[0]
    engine.wait()
    assert sorted(_numbers(engine)[FEW_BATCHES:]) == [[10], [20]]
    engine.gate.set()
    assert answer.result(SECONDS) == 40
    assert [future.result(SECONDS) for future in waiting] == [20, 22]
    engine.close_gate()
    engine.clock.now += RESERVED_SECONDS
    both = long.submit([Item(12), Item(13)])
    engine.wait()
    engine.wait()
    engine.gate.set()
    assert [future.result(SECONDS) for future in both] == [24, 26]


def test_a_worker_is_kept_for_messages_after_one(engine: EngineDouble, start: Start) -> None:
    """A recording that comes next has the other worker only, as soon as it is known to be a long one."""
    scheduler = start(workers=2, batch=1)
    message = scheduler.admit()
    message.submit([Item(0)])[0].result(SECONDS)
    message.close()
    engine.close_gate()
    long = scheduler.admit()
    waiting = long.submit([Item(number, frames=int(60 * MESSAGE_SECONDS)) for number in (1, 2)])
    engine.wait()
    assert not engine.entered.acquire(timeout=0.05)
    answer = scheduler.admit().submit([Item(3)])[0]
    engine.wait()
    assert sorted(_numbers(engine)[1:]) == [[1], [3]]
    engine.gate.set()
    assert answer.result(SECONDS) == 6
    assert [future.result(SECONDS) for future in waiting] == [2, 4]


def test_a_worker_is_kept_for_a_live_session(engine: EngineDouble, start: Start) -> None:
    """Each of its passes says that the next will come; however many there were, it is no long recording."""
    engine.took = 0.0
    scheduler = start(workers=2, batch=1)
    live = scheduler.admit(live=True)
    long = _grown_long(scheduler)
    engine.clock.now += RESERVED_SECONDS
    for number in range(FEW_BATCHES):
        assert live.submit([Item(number)])[0].result(SECONDS) == 2 * number
    engine.close_gate()
    recording = long.submit([Item(10), Item(11)])
    engine.wait()
    assert not engine.entered.acquire(timeout=0.05)
    passed = live.submit([Item(20)])[0]
    engine.wait()
    engine.gate.set()
    assert passed.result(SECONDS) == 40
    assert [future.result(SECONDS) for future in recording] == [20, 22]


# Beside other models


def _grown_long(scheduler: Scheduler) -> Any:
    """Return a request that was in so many batches that it counts as a long recording."""
    long = scheduler.admit()
    for number in range(FEW_BATCHES):
        assert long.submit([Item(number)])[0].result(SECONDS) == 2 * number
    return long


def test_busy_models_share_the_workers(engine: EngineDouble, start: Start) -> None:
    """One batch always runs; a second one only while other models leave a worker, or when one has ended."""
    others = 1
    scheduler = start(workers=2, batch=1, others=lambda: others)
    engine.close_gate()
    futures = scheduler.admit().submit([Item(1), Item(2)])
    engine.wait()
    assert not engine.entered.acquire(timeout=0.05)
    others = 0
    scheduler.wake()
    engine.wait()
    engine.gate.set()
    assert [future.result(SECONDS) for future in futures] == [2, 4]


def test_a_message_waits_for_no_long_recording_beside_a_busy_model(engine: EngineDouble, start: Start) -> None:
    """It gets a worker even so, and the rest of the recording does not."""
    engine.took = 0.0
    scheduler = start(workers=2, batch=1, others=lambda: 2)
    long = _grown_long(scheduler)
    engine.close_gate()
    recording = long.submit([Item(10), Item(11)])
    engine.wait()
    message = scheduler.admit().submit([Item(20)])[0]
    engine.wait()
    assert sorted(_numbers(engine)[FEW_BATCHES:]) == [[10], [20]]
    engine.gate.set()
    assert message.result(SECONDS) == 40
    assert [future.result(SECONDS) for future in recording] == [20, 22]


def test_progress_is_reported(engine: EngineDouble, start: Start) -> None:
    """After each batch, and when a request leaves: another model may have waited for either."""
    progressed = threading.Semaphore(0)
    ticket = start(batch=1, progressed=progressed.release).admit()
    for number in range(2):
        ticket.submit([Item(number)])[0].result(SECONDS)
        assert progressed.acquire(timeout=SECONDS)
    assert not progressed.acquire(blocking=False)
    ticket.close()
    assert progressed.acquire(blocking=False)
    assert len(engine.batches) == 2


def test_finishing_is_for_messages(engine: EngineDouble, start: Start) -> None:
    """Those that come meanwhile are finished as well; long recordings and bulk work wait until `resume`."""
    engine.took = 0.0
    scheduler = start(batch=1)
    long, bulk, message = _grown_long(scheduler), scheduler.admit(bulk=True), scheduler.admit()
    assert not scheduler.finish()
    recording, later = long.submit([Item(10)])[0], bulk.submit([Item(11)])[0]
    assert message.submit([Item(12)])[0].result(SECONDS) == 24
    message.close()
    newer = scheduler.admit()
    assert not scheduler.finish()
    assert newer.submit([Item(13)])[0].result(SECONDS) == 26
    newer.close()
    assert not recording.done()
    assert not scheduler.finishing
    assert scheduler.finish()
    assert scheduler.finishing  # the model is being unloaded
    scheduler.resume()
    assert not scheduler.finishing
    assert [recording.result(SECONDS), later.result(SECONDS)] == [20, 22]


def test_finishing_has_an_end(engine: EngineDouble, start: Start) -> None:
    """Messages that come later than FINISH_SECONDS wait, so that another model gets the memory some time."""
    engine.took = 0.0
    scheduler = start(batch=1)
    early = scheduler.admit()
    assert not scheduler.finish()
    engine.clock.now += FINISH_SECONDS
    assert scheduler.finishing
    late = scheduler.admit()
    waiting = late.submit([Item(1)])[0]
    assert not scheduler.finish()
    assert early.submit([Item(2)])[0].result(SECONDS) == 4
    early.close()
    assert scheduler.finish()
    assert not waiting.done()
    scheduler.resume()
    assert waiting.result(SECONDS) == 2


def test_finishing_waits_for_a_message_that_is_expected(engine: EngineDouble, start: Start) -> None:
    """From the moment that it is expected until it is done; but not for one that does not come, nor after the end."""
    engine.took = 0.0
    scheduler = start(batch=1)
    scheduler.expect()
    assert not scheduler.finish()
    message = scheduler.admit()
    assert not scheduler.finish()
    assert message.submit([Item(1)])[0].result(SECONDS) == 2
    message.close()
    assert scheduler.finish()
    scheduler.expect()
    assert not scheduler.finish()
    engine.clock.now += EXPECT_SECONDS
    assert scheduler.finish()
    engine.clock.now += FINISH_SECONDS
    scheduler.expect()
    assert scheduler.finish()


def test_a_batch_in_flight_is_part_of_the_work(engine: EngineDouble, start: Start) -> None:
    """Even one of a request that has left."""
    engine.close_gate()
    scheduler = start(batch=1)
    ticket = scheduler.admit()
    ticket.submit([Item(1)])
    engine.wait()
    ticket.close()
    assert not scheduler.finish()
    engine.gate.set()
    assert scheduler.close(SECONDS)
    assert scheduler.finish()


def test_finishing_waits_for_no_live_session(engine: EngineDouble, start: Start) -> None:
    """It stays open for as long as somebody speaks; what it submits meanwhile waits."""
    scheduler = start(batch=1)
    live = scheduler.admit(live=True)
    assert scheduler.finish()
    waiting = live.submit([Item(1)])[0]
    assert scheduler.finish()
    assert not waiting.done()
    scheduler.resume()
    assert waiting.result(SECONDS) == 2


def test_finishing_waits_for_no_message_for_ever(engine: EngineDouble, start: Start) -> None:
    """One whose file takes long to decode, say."""
    scheduler = start(batch=1)
    scheduler.admit()
    assert not scheduler.finish()
    engine.clock.now += FINISH_SECONDS + FINISH_AT_MOST_SECONDS - 0.1
    assert not scheduler.finish()
    engine.clock.now += 0.2
    assert scheduler.finish()
