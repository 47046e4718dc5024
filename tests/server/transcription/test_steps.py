from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from localwhisper_server.transcription.transcriber import SHORT_STEPS, SHORT_THREADS, RequestSteps, StepRunner
from tests.server.engine_double import SECONDS, Clock

pytestmark = pytest.mark.anyio


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


async def _start(steps: StepRunner, work: Work, count: int, **request: Any) -> list[asyncio.Task[int]]:
    """Start steps of so many requests, and wait until the first runs."""
    tasks = [asyncio.create_task(steps.run(RequestSteps(**request), work)) for _ in range(count)]
    assert await asyncio.to_thread(work.entered.acquire, timeout=SECONDS)
    return tasks


@pytest.mark.parametrize("request_", [{"taken": SHORT_STEPS + 1}, {"bulk": True}], ids=["long", "bulk"])
async def test_a_message_never_waits_for_long_recordings(request_: dict[str, Any]) -> None:
    """It is prepared beside four films or bulk requests, and those go on one step at a time."""
    work, steps = Work(), StepRunner(clock=Clock())
    films = await _start(steps, work, 4, **request_)
    for _ in range(SHORT_STEPS + 1):
        assert await asyncio.wait_for(steps.run(RequestSteps(), lambda: "done"), SECONDS) == "done"
    work.gate.set()
    assert await asyncio.gather(*films) == [7] * 4
    assert work.most == 1


async def test_requests_alternate() -> None:
    """A long recording has one step at a time, so another's step comes between two of its own."""
    steps, order, gate = StepRunner(clock=Clock()), list[str](), threading.Event()

    async def film(name: str) -> None:
        request = RequestSteps(taken=SHORT_STEPS + 1)
        for _ in range(3):
            await steps.run(request, lambda: (gate.wait(SECONDS), order.append(name)))

    films = [asyncio.create_task(film(name)) for name in "ab"]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*films)
    assert "".join(order) == "ababab"


async def test_the_number_of_steps_at_a_time_is_bounded_and_the_wait_is_estimated() -> None:
    """A step's exception reaches its caller; a cancelled caller's step is dropped."""
    work, steps = Work(), StepRunner(clock=Clock())
    assert steps.seconds_ahead() == 0.0
    tasks = await _start(steps, work, 6)
    assert steps.seconds_ahead() > 0
    tasks[5].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[5]
    work.gate.set()
    assert await asyncio.gather(*tasks[:5]) == [7] * 5
    assert work.most == SHORT_THREADS
    assert steps.seconds_ahead() == 0.0
    with pytest.raises(ZeroDivisionError):
        await steps.run(RequestSteps(), lambda: 1 // 0)
    assert await steps.run(RequestSteps(), lambda: 1) == 1
