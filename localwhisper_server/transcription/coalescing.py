"""The same upload asked for twice is computed once: followers of a running transcription, and the last finished ones.

A client that lost its connection asks again; two bots in one chat ask for the same file. The key is everything that
decides the answer, so whoever shares one gets the same.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import aclosing
from typing import Generic, TypeVar

Value = TypeVar("Value")


class _Run(Generic[Value]):
    """One computation: what it has given so far, and how it ended."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.failure: BaseException | None = None
        self.ended = False
        self.followers = 0
        self.grown = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Tell every follower that there is more, or an end."""
        self.grown.set()
        self.grown = asyncio.Event()


class Coalescer(Generic[Value]):
    """Async generators by key. The last follower to leave takes an unfinished one along.

    `kept` finished runs are remembered, the least recently used forgotten first; failed ones never are.
    """

    def __init__(self, kept: int = 0) -> None:
        self._kept = kept
        self._running: dict[Hashable, _Run[Value]] = {}
        self._finished: OrderedDict[Hashable, list[Value]] = OrderedDict()

    def known(self, key: Hashable) -> bool:
        """Whether following `key` needs no new computation."""
        return key in self._running or key in self._finished

    async def follow(self, key: Hashable, start: Callable[[], AsyncGenerator[Value]]) -> AsyncGenerator[Value]:
        """Yield the values of `key` from its first; `start` computes them if nobody does."""
        if key in self._finished:
            self._finished.move_to_end(key)
            for value in self._finished[key]:
                yield value
            return
        run = self._running.get(key)
        if run is None:
            run = self._running[key] = _Run()
            run.task = asyncio.create_task(self._compute(key, run, start()))
        run.followers += 1
        try:
            position = 0
            while True:
                while position < len(run.values):
                    yield run.values[position]
                    position += 1
                if run.failure is not None:
                    raise run.failure
                if run.ended:
                    return
                await run.grown.wait()
        finally:
            run.followers -= 1
            if not run.followers and not run.ended and run.task is not None:
                self._running.pop(key, None)
                run.task.cancel()
                await asyncio.gather(run.task, return_exceptions=True)

    async def _compute(self, key: Hashable, run: _Run[Value], values: AsyncGenerator[Value]) -> None:
        try:
            async with aclosing(values):
                async for value in values:
                    run.values.append(value)
                    run.wake()
            if self._kept:
                self._finished[key] = run.values
                while len(self._finished) > self._kept:
                    self._finished.popitem(last=False)
        except Exception as failure:  # noqa: BLE001 - every follower raises it
            run.failure = failure
        finally:
            run.ended = True
            if self._running.get(key) is run:
                del self._running[key]
            run.wake()
