"""Which models are in memory: if memory is short, one is unloaded so that another can be loaded.

Called from the schedulers' threads. A model without work is unloaded at once, the least recently used first. Among
models with work, the one that has been in memory longest is unloaded, but not before it has worked for as long as its
load took: at most half of the time goes to loading. It first answers all messages, for some seconds at most.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

# The longest wait before a model is asked again whether it can be unloaded.
CHECK_SECONDS = 0.5


class Resident(Protocol):
    """A model that may be in memory."""

    used: float  # when the last request for it came

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""

    @property
    def busy(self) -> bool:
        """Whether it has requests."""

    def finish_and_unload(self) -> bool:
        """Finish all messages, begin nothing else, then unload; return whether it is unloaded."""

    def resume(self) -> None:
        """Take all requests again."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """When a model was loaded, and until when it stays in memory if it has work."""

    since: float
    keep_until: float


class ModelMemory:
    """Loads one model after another, and keeps at most `most` in memory; 0 for as many as fit.

    `changed` must be called whenever a model has finished some of its work. `clock` gives seconds from any start.
    """

    def __init__(self, *, most: int = 0, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._models: list[Resident] = []
        self._times: dict[int, _Loaded] = {}
        self._loading = threading.Lock()
        self._event = threading.Event()

    def add(self, model: Resident) -> None:
        """Tell of a model before it is loaded."""
        self._models.append(model)

    def changed(self) -> None:
        """Look again for a model that can be unloaded. Does not block."""
        self._event.set()

    @contextlib.contextmanager
    def loading(self, model: Resident | None) -> Iterator[None]:
        """Load `model` in the block, when no other is being loaded and fewer than `most` others are in memory.

        A server of a single model gives None.
        """
        with self._loading:
            while self._most and len(self._others(model)) >= self._most:
                self._unload_one(model, wait=True)
            started = self._clock()
            yield
            now = self._clock()
            self._times[id(model)] = _Loaded(now, now + now - started)

    def make_room(self, model: Resident | None, *, wait: bool) -> bool:
        """Unload another model, with `wait` after it has done its work; return False if that is not possible.

        Only a model that is not in memory may wait: two that are would wait for each other.
        """
        if not self._loading.acquire(blocking=wait):
            return False
        try:
            return bool(self._others(model)) and self._unload_one(model, wait=wait)
        finally:
            self._loading.release()

    def _others(self, model: Resident | None) -> list[Resident]:
        return [other for other in self._models if other is not model and other.loaded]

    def _unload_one(self, model: Resident | None, *, wait: bool) -> bool:
        """Return whether another model is no longer in memory."""
        first = len(self._others(model))
        try:
            while len(others := self._others(model)) >= first:
                self._event.clear()
                idle = sorted((other for other in others if not other.busy), key=lambda other: other.used)
                if any(other.finish_and_unload() for other in idle):
                    return True
                if not wait:
                    return False
                oldest = min(others, key=lambda other: self._time(other).since)
                left = self._time(oldest).keep_until - self._clock()
                if left > 0 or not oldest.finish_and_unload():
                    self._event.wait(min(left, CHECK_SECONDS) if left > 0 else CHECK_SECONDS)
            return True
        finally:
            for other in self._models:
                if other is not model:
                    other.resume()

    def _time(self, model: Resident) -> _Loaded:
        return self._times.get(id(model), _Loaded(0.0, 0.0))
