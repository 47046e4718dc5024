from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from localwhisper_server.transcription.preparation import Steps
from localwhisper_server.transcription.step_queue import FEW, OLDEST_EVERY, Account, StepQueue

SECONDS = 10.0


def _order(queue: StepQueue[Any], count: int) -> list[Any]:
    return [_take(queue) for _ in range(count)]


def _take(queue: StepQueue[Any], *, short: bool = False) -> Any:
    taken = queue.take(short=short)
    return taken and taken[1]


def test_a_short_recording_goes_before_long_ones() -> None:
    """It waits for no more than a few steps of all others together, however many they are and however long."""
    queue: StepQueue[str] = StepQueue()
    films = [Account() for _ in range(30)]
    for film in films:
        film.steps = 100
        queue.put(film, "film")
    message, taken = Account(), list[str | None]()
    for _ in range(3):  # hashed, cut, and one more
        queue.put(message, "message")
        while (step := _take(queue)) != "message":
            taken.append(step)
            queue.put(films[0], "film")
        taken.append(step)
    assert len(taken) <= 3 + 2
    assert message.steps == 3


def test_a_long_recording_never_stands_still() -> None:
    """One step in four goes to the one that has waited longest, whatever comes meanwhile."""
    queue: StepQueue[str] = StepQueue()
    film = Account(steps=1000)
    done = 0
    queue.put(film, "film")
    for _ in range(40):
        queue.put(Account(), "message")
        if _take(queue) == "film":
            done += 1
            queue.put(film, "film")
    assert 1 <= done <= 40 // OLDEST_EVERY


def test_equals_take_turns_and_bulk_work_comes_last() -> None:
    """Fewest steps first, then in the order of arrival; an empty queue gives none."""
    queue: StepQueue[str] = StepQueue()
    one, two, bulk = Account(), Account(), Account(bulk=True)
    for account, name in ((bulk, "bulk"), (one, "one"), (two, "two")):
        queue.put(account, name)
    assert _order(queue, 2) == ["one", "two"]
    queue.put(two, "two")
    queue.put(one, "one")
    assert len(queue) == 3
    assert _take(queue) == "two"
    assert _order(queue, 3) == ["bulk", "one", None]  # the fourth goes to the oldest
    assert (one.steps, two.steps, bulk.steps) == (2, 2, 1)


def test_a_thread_is_kept_for_short_recordings() -> None:
    """It takes no step of a long one, even where nothing else waits."""
    queue: StepQueue[str] = StepQueue()
    film, message = Account(steps=FEW + 1), Account(steps=FEW)
    queue.put(film, "film")
    queue.put(message, "message")
    assert [_take(queue, short=True), _take(queue, short=True), _take(queue)] == ["message", None, "film"]


@pytest.mark.anyio
async def test_one_thread_at_most_is_at_long_recordings() -> None:
    """So a message is prepared beside four films that are, and these go on one step after the other."""
    gate, entered, films, most, running = threading.Event(), threading.Semaphore(0), 4, 0, 0

    def look() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        entered.release()
        assert gate.wait(SECONDS)
        running -= 1

    steps = Steps(slots=2)
    tasks = [asyncio.create_task(steps.run(Account(steps=100), look)) for _ in range(films)]
    assert await asyncio.to_thread(entered.acquire, timeout=SECONDS)
    assert await asyncio.wait_for(steps.run(Account(), lambda: "heard"), SECONDS) == "heard"
    assert steps.seconds_ahead() > 0
    gate.set()
    await asyncio.gather(*tasks)
    assert most == 1


@pytest.mark.anyio
async def test_so_many_steps_run_at_a_time_and_the_wait_is_known() -> None:
    """Who waits is counted; what a step raises is its caller's; a caller who leaves takes the step along."""
    gate, running, most, now = threading.Event(), 0, 0, 0.0
    lock = threading.Lock()
    entered = threading.Semaphore(0)

    def work() -> int:
        nonlocal running, most, now
        with lock:
            running += 1
            most = max(most, running)
        entered.release()
        assert gate.wait(SECONDS)
        with lock:
            running -= 1
        return 7

    steps = Steps(slots=2, clock=lambda: now)
    assert steps.seconds_ahead() == 0.0
    tasks = [asyncio.create_task(steps.run(Account(), work)) for _ in range(6)]
    for _ in range(2):
        assert await asyncio.to_thread(entered.acquire, timeout=SECONDS)
    one_each = steps.seconds_ahead()
    assert one_each > 0
    tasks[5].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[5]
    gate.set()
    assert await asyncio.gather(*tasks[:5]) == [7] * 5
    assert most == 2
    with pytest.raises(ZeroDivisionError):
        await steps.run(Account(), lambda: 1 // 0)
    assert await steps.run(Account(), lambda: 1) == 1
