from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from localwhisper_server.whisper.model_memory import ModelMemory
from tests.server.engine_double import SECONDS, Clock

if TYPE_CHECKING:
    from collections.abc import Callable


class Model:
    """A model that may be in memory. One with `work` is only unloaded when that is taken away."""

    def __init__(self, memory: ModelMemory, name: str, *, loaded: bool = False, work: bool = False) -> None:
        self.name, self.loaded, self.busy, self.used = name, loaded, work, 0.0
        self.asked, self.resumed = threading.Semaphore(0), 0
        memory.add(self)

    def finish_and_unload(self) -> bool:
        """Unload, unless there is work."""
        self.asked.release()
        if not self.busy:
            self.loaded = False
        return not self.busy

    def resume(self) -> None:
        """Count."""
        self.resumed += 1


class Device:
    """A clock, a memory, and models on it."""

    def __init__(self, most: int = 1) -> None:
        self.clock = Clock()
        self.memory = ModelMemory(most=most, clock=self.clock)

    def model(self, name: str, **state: bool) -> Model:
        """Return a new model."""
        return Model(self.memory, name, **state)

    def load(self, model: Model, took: float = 0.0) -> None:
        """Load a model, which takes so long."""
        with self.memory.loading(model):
            self.clock.now += took
            model.loaded = True


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Start work in a thread."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_the_least_recently_used_model_is_unloaded() -> None:
    """Only as many as necessary, and only for one that is loaded."""
    device = Device(most=2)
    one, two, three = (device.model(name) for name in ("one", "two", "three"))
    device.load(one)
    device.load(two)
    assert one.loaded
    assert two.loaded
    one.used, two.used = 5.0, 3.0
    device.load(three)
    assert [model.loaded for model in (one, two, three)] == [True, False, True]
    device.load(three)  # in another precision, say: it takes its own place
    assert one.loaded


def test_without_a_limit_as_many_are_loaded_as_fit() -> None:
    """Room is made when a load fails, one model at a time."""
    device = Device(most=0)
    models = [device.model(str(number)) for number in range(4)]
    for number, model in enumerate(models):
        model.used = number
        device.load(model)
    models[3].loaded = False  # its load fails
    assert device.memory.make_room(models[3], wait=True)
    assert [model.loaded for model in models] == [False, True, True, False]
    for _ in range(2):
        assert device.memory.make_room(models[3], wait=True)
    assert not device.memory.make_room(models[3], wait=True)


def test_a_model_with_work_is_not_unloaded_for_a_larger_batch() -> None:
    """A batch can be halved instead, so nothing waits."""
    device = Device(most=0)
    working, idle, asking = device.model("a", loaded=True, work=True), device.model("b", loaded=True), device.model("c")
    assert device.memory.make_room(asking, wait=False)
    assert not device.memory.make_room(asking, wait=False)
    assert (working.loaded, idle.loaded) == (True, False)
    assert working.resumed == idle.resumed == 2


def test_a_model_with_work_is_unloaded_when_that_is_done() -> None:
    """The load waits for it; the model takes all requests again afterwards."""
    device = Device()
    working, waiting = device.model("working", loaded=True, work=True), device.model("waiting")
    thread = in_thread(lambda: device.load(waiting))
    assert working.asked.acquire(timeout=SECONDS)
    assert not waiting.loaded
    working.busy = False
    device.memory.changed()
    thread.join(SECONDS)
    assert (working.loaded, waiting.loaded) == (False, True)
    assert working.resumed == 1


def test_a_model_stays_for_as_long_as_its_load_took() -> None:
    """Otherwise two models with much work would do nothing but load. The one that was loaded first makes room first."""
    device = Device(most=2)
    first, second, third = (device.model(name, work=True) for name in ("first", "second", "third"))
    device.load(first, took=10.0)
    device.load(second, took=1.0)
    device.clock.now = 19.0
    thread = in_thread(lambda: device.load(third))
    second.used = -1.0
    device.memory.changed()
    assert not first.asked.acquire(timeout=0.05)
    device.clock.now = 20.0
    device.memory.changed()
    assert first.asked.acquire(timeout=SECONDS)
    assert not second.asked.acquire(blocking=False)
    first.busy = False
    device.memory.changed()
    thread.join(SECONDS)
    assert [model.loaded for model in (first, second, third)] == [False, True, True]


def test_loads_take_place_one_after_another() -> None:
    """Two at the same time could both fail where one would fit."""
    device = Device(most=0)
    one, two = device.model("one"), device.model("two")
    with device.memory.loading(one):
        thread = in_thread(lambda: device.load(two))
        thread.join(0.05)
        assert not two.loaded
        assert not device.memory.make_room(two, wait=False)
    thread.join(SECONDS)
    assert two.loaded


def test_a_model_that_leaves_by_itself_makes_room() -> None:
    """One that was idle for long, or dropped its engine when memory ran out."""
    device = Device()
    leaving, waiting = device.model("leaving", loaded=True, work=True), device.model("waiting")
    thread = in_thread(lambda: device.load(waiting))
    assert leaving.asked.acquire(timeout=SECONDS)
    leaving.loaded = False
    device.memory.changed()
    thread.join(SECONDS)
    assert waiting.loaded


def test_a_failed_load_lets_others_load() -> None:
    """An error passes through."""
    device = Device()
    one, two = device.model("one"), device.model("two")
    with pytest.raises(RuntimeError, match="damaged"), device.memory.loading(one):
        raise RuntimeError("damaged")
    device.load(two)
    assert two.loaded
