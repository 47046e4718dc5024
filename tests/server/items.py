"""Doubles for the queue, the scheduler and the transcriber: chunks, a clock and an engine."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = 10.0  # the longest that a test waits
SHORT = 800  # frames of a voice message


@dataclass(frozen=True)
class Item:
    """A chunk as the queue sees it, with a number to recognise it by."""

    number: Any
    frames: int = SHORT

    @property
    def seconds(self) -> float:
        """The length of its window."""
        return self.frames / 100


class Answer(int):
    """A result that the acceptance check has not rejected."""

    rejected = None


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """Answers each item with twice its number, or raises the number if it is an exception.

    It keeps its batches, moves the clock by `took` seconds for each, and waits in `run` while `gate` is closed.
    """

    def __init__(self) -> None:
        self.clock, self.took = Clock(), 1.0
        self.batches: list[list[Any]] = []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.together = self.inside = 0

    @property
    def items(self) -> list[Any]:
        """All items, in the order they came."""
        return [item for batch in self.batches for item in batch]

    @property
    def numbers(self) -> list[list[Any]]:
        """The numbers of the items of each batch."""
        return [[item.number for item in batch] for batch in self.batches]

    def run(self, items: Sequence[Any]) -> list[Any]:
        """Run one batch."""
        self.inside += 1
        self.together = max(self.together, self.inside)
        self.batches.append(list(items))
        self.entered.release()
        assert self.gate.wait(SECONDS)
        self.clock.now += self.took
        self.inside -= 1
        return [self.answer(item) for item in items]

    def answer(self, item: Any) -> Any:
        """Return the result of one item."""
        if isinstance(item.number, Exception):
            raise item.number
        return Answer(item.number * 2)

    def wait(self) -> None:
        """Return when a batch has come."""
        assert self.entered.acquire(timeout=SECONDS)
