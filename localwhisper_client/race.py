"""Runs two attempts at one call beside each other: the second begins if the first is late, and the loser is dropped."""

from __future__ import annotations

import contextvars
import queue
import threading
from typing import TYPE_CHECKING, Any

import anyio

from localwhisper_client.routing.steps import FINAL, Outcome, Raced

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
    """Race in tasks; the loser's is cancelled, and its connection closed.

    Each attempt has a cancel scope of its own, and the task of the call none: were the winner to cancel a scope that
    the call is in, a cancellation of the call at the same moment could be lost in it.
    """
    outcomes: dict[int, Outcome] = {}
    errors: list[Exception] = []
    early = anyio.Event()
    scopes = (anyio.CancelScope(), anyio.CancelScope())
    hedged = False

    async def attempt(number: int, leg: Callable[[], Awaitable[Outcome]]) -> None:
        try:
            outcome = outcomes[number] = await leg()
        except Exception as error:  # noqa: BLE001 - raised as it is, not in a group of exceptions
            errors.append(error)
        else:
            early.set()
            if outcome.verdict not in FINAL:
                return
        scopes[1 - number].cancel()

    async def begin() -> None:
        with scopes[0]:
            await attempt(0, first)

    async def follow() -> None:
        nonlocal hedged
        with scopes[1]:
            with anyio.move_on_after(after):
                await early.wait()
                return
            hedged = True
            await attempt(1, second)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(begin)
        tasks.start_soon(follow)
    if errors:
        raise errors[0]
    return Raced(outcomes.get(0), outcomes.get(1), hedged)


def _drop(outcome: Outcome | BaseException) -> None:
    value: Any = getattr(outcome, "value", None)
    response = getattr(value, "http_response", None) or getattr(value, "response", None)
    if response is not None:
        response.close()
