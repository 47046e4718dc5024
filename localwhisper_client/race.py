"""Runs two attempts at one call beside each other: the second begins if the first is late, and the loser is dropped."""

from __future__ import annotations

import contextvars
import queue
import threading
from typing import TYPE_CHECKING, Any

import anyio

from localwhisper_client.steps import FINAL, Outcome, Raced

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def run(first: Callable[[], Outcome], second: Callable[[], Outcome], after: float) -> Raced:
    """Race in threads.

    A thread that waits for a socket cannot be stopped: the loser's goes on until its server answers or its time is up,
    and then throws the answer away.
    """
    ended: queue.SimpleQueue[tuple[int, Outcome | BaseException]] = queue.SimpleQueue()
    lock = threading.Lock()
    over = False

    def attempt(number: int, leg: Callable[[], Outcome]) -> None:
        outcome: Outcome | BaseException
        try:
            outcome = leg()
        except BaseException as error:  # noqa: BLE001 - raised in the thread of the call
            outcome = error
        with lock:
            if not over:
                ended.put((number, outcome))
                return
        _drop(outcome)

    def start(number: int, leg: Callable[[], Outcome]) -> None:
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(attempt, number, leg), name="localwhisper-race", daemon=True).start()

    outcomes: dict[int, Outcome] = {}
    start(0, first)
    hedged = False
    try:
        while True:
            try:
                number, outcome = ended.get(timeout=None if hedged else after)
            except queue.Empty:
                hedged = True
                start(1, second)
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes[number] = outcome
            if not hedged or outcome.verdict in FINAL or len(outcomes) > 1:
                return Raced(outcomes.get(0), outcomes.get(1), hedged)
    finally:
        with lock:
            over = True
        while not ended.empty():
            _drop(ended.get()[1])


async def arun(
    first: Callable[[], Awaitable[Outcome]], second: Callable[[], Awaitable[Outcome]], after: float
) -> Raced:
    """Race in tasks; the loser's is cancelled, and its connection closed."""
    outcomes: dict[int, Outcome] = {}
    errors: list[Exception] = []
    early = anyio.Event()
    hedged = False

    async def attempt(number: int, leg: Callable[[], Awaitable[Outcome]], scope: anyio.CancelScope) -> None:
        try:
            outcome = await leg()
        except Exception as error:  # noqa: BLE001 - raised as it is, not in a group of exceptions
            errors.append(error)
            scope.cancel()
            return
        outcomes[number] = outcome
        early.set()
        if outcome.verdict in FINAL:
            scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attempt, 0, first, tasks.cancel_scope)
        with anyio.move_on_after(after):
            await early.wait()
        if not early.is_set():
            hedged = True
            tasks.start_soon(attempt, 1, second, tasks.cancel_scope)
    if errors:
        raise errors[0]
    return Raced(outcomes.get(0), outcomes.get(1), hedged)


def _drop(outcome: Outcome | BaseException) -> None:
    value: Any = getattr(outcome, "value", None)
    response = getattr(value, "http_response", None) or getattr(value, "response", None)
    if response is not None:
        response.close()
