from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from localwhisper_server.transcription.preparation import (
    OLDEST_EVERY,
    SHORT_STEPS,
    RequestSteps,
    StepRunner,
    next_step,
)
from tests.server.items import SECONDS, Clock


class Waiting:
    """Waiting requests in order of arrival, as the runner keeps them."""

    def __init__(self, *requests: RequestSteps) -> None:
        self.requests, self.number = list(requests), 0

    def take(self, *, short_only: bool = False) -> RequestSteps | None:
        """Remove and return the request that takes the next step."""
        at = next_step(self.requests, self.number + 1, short_only=short_only)
        if at is None:
            return None
        self.number += 1
        taken = self.requests.pop(at)
        taken.taken += 1
        return taken


def test_a_short_recording_goes_before_long_ones() -> None:
    """It waits for few steps of others, however many long recordings there are."""
    waiting = Waiting(*(RequestSteps(taken=100) for _ in range(30)))
    message, others = RequestSteps(), 0
    for _ in range(3):
        waiting.requests.append(message)
        while (taken := waiting.take()) is not message:
            assert taken is not None
            others += 1
            waiting.requests.append(taken)
    assert others <= 2
    assert message.taken == 3


def test_a_long_recording_always_makes_progress() -> None:
    """One step in four goes to the request that has waited longest, even if short requests keep coming."""
    film = RequestSteps(taken=1000)
    waiting = Waiting(film)
    for _ in range(40):
        waiting.requests.append(RequestSteps())
        if waiting.take() is film:
            waiting.requests.append(film)
    assert 1 <= film.taken - 1000 <= 40 // OLDEST_EVERY


def test_equal_requests_alternate_and_bulk_work_comes_last() -> None:
    """Fewest steps first, then in order of arrival."""
    one, two, bulk = RequestSteps(), RequestSteps(), RequestSteps(bulk=True)
    waiting = Waiting(bulk, one, two)
    assert [waiting.take(), waiting.take()] == [one, two]
    waiting.requests += [two, one]
    assert waiting.take() is two
    assert [waiting.take(), waiting.take(), waiting.take()] == [bulk, one, None]  # the fourth step is the oldest's


def test_a_step_for_short_requests_alone() -> None:
    """A long request does not get it, even if no other waits."""
    film, message = RequestSteps(taken=SHORT_STEPS + 1), RequestSteps(taken=SHORT_STEPS)
    waiting = Waiting(film, message)
    assert [waiting.take(short_only=True), waiting.take(short_only=True), waiting.take()] == [message, None, film]


class Work:
    """A step that waits for `gate`; counts how many run at a time."""

    def __init__(self) -> None:
        self.gate, self.entered, self.lock = threading.Event(), threading.Semaphore(0), threading.Lock()
        self.running = self.most = 0

    def __call__(self) -> int:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.entered.release()
        assert self.gate.wait(SECONDS)
        with self.lock:
            self.running -= 1
        return 7


def _start(steps: StepRunner, work: Work, count: int, taken: int = 0) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(steps.run(RequestSteps(taken=taken), work)) for _ in range(count)]


@pytest.mark.anyio
async def test_long_recordings_occupy_all_threads_but_one() -> None:
    """A message is prepared beside four films, and the films go on one step at a time."""
    work, steps = Work(), StepRunner(slots=2, clock=Clock())
    tasks = _start(steps, work, 4, taken=100)
    assert await asyncio.to_thread(work.entered.acquire, timeout=SECONDS)
    assert await asyncio.wait_for(steps.run(RequestSteps(), lambda: "done"), SECONDS) == "done"
    assert steps.seconds_ahead() > 0
    work.gate.set()
    await asyncio.gather(*tasks)
    assert work.most == 1


@pytest.mark.anyio
async def test_the_number_of_steps_at_a_time_is_bounded_and_the_wait_is_estimated() -> None:
    """A step's exception reaches its caller; a cancelled caller's step is dropped."""
    work, steps = Work(), StepRunner(slots=2, clock=Clock())
    assert steps.seconds_ahead() == 0.0
    tasks = _start(steps, work, 6)
    for _ in range(2):
        assert await asyncio.to_thread(work.entered.acquire, timeout=SECONDS)
    assert steps.seconds_ahead() > 0
    tasks[5].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[5]
    work.gate.set()
    assert await asyncio.gather(*tasks[:5]) == [7] * 5
    assert work.most == 2
    with pytest.raises(ZeroDivisionError):
        await steps.run(RequestSteps(), lambda: 1 // 0)
    assert await steps.run(RequestSteps(), lambda: 1) == 1
