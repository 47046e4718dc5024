"""What an observer is told of batches, loads and waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from localwhisper_server import observer
from localwhisper_server.transcription.queue import Limits
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.whisper.devices import Device
from localwhisper_server.whisper.model_manager import ModelManager


class Notes(observer.NullObserver):
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []

    def waited(self, seconds: float) -> None:
        self.notes.append(("waited", seconds))

    def decoded(self, chunks: int, most: int, sound: float, took: float) -> None:
        self.notes.append(("decoded", chunks, most, sound, took))

    def retried(self, reason: str) -> None:
        self.notes.append(("retried", reason))

    def model_loaded(self) -> None:
        self.notes.append(("loaded",))

    def out_of_memory(self) -> None:
        self.notes.append(("memory",))


def test_a_batch_is_reported() -> None:
    """Its chunks, their seconds, the time it took, and which answers were refused; a batch that fails is not."""
    notes, times = Notes(), iter([1.0, 3.5, 5.0])
    results = [SimpleNamespace(doubt=None), SimpleNamespace(doubt="pace")]
    run = observer.watched(lambda _: results, notes, most=4, clock=lambda: next(times))
    assert run([SimpleNamespace(seconds=2.0), SimpleNamespace(seconds=3.0)]) == results
    assert notes.notes == [("decoded", 2, 4, 5.0, 2.5), ("retried", "pace")]

    def fail(_: Any) -> Any:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        observer.watched(fail, notes, most=4, clock=lambda: next(times))([])
    assert len(notes.notes) == 2


def test_the_model_manager_reports_loads_and_a_lack_of_memory() -> None:
    """Each time."""
    notes = Notes()

    class Engine:
        def run(self, chunks: Any) -> Any:
            if len(chunks) > 1:
                raise RuntimeError("CUDA failed with error out of memory")
            return list(chunks)

    model_manager: Any = ModelManager(
        lambda _: Engine(), Device("cpu", "int8", "test"), clock=lambda: 0.0, observer=notes
    )  # type: ignore[arg-type,return-value]
    assert model_manager.run([1, 2]) == [1, 2]
    model_manager.unload()
    model_manager.run([3])
    assert notes.notes == [("loaded",), ("memory",), ("loaded",)]


def test_the_scheduler_reports_how_long_a_chunk_waited() -> None:
    """From its submission to its batch, on the scheduler's clock."""
    notes, now = Notes(), iter(range(100))
    scheduler: Scheduler[Any, Any] = Scheduler(
        lambda items: items,
        capacity=1,
        limits=Limits(items=1, frames=1000, share=1000),
        clock=lambda: float(next(now)),
        waited=notes.waited,
    )
    ticket = scheduler.admit()
    item = SimpleNamespace(frames=100, seconds=1.0)
    assert ticket.submit([item])[0].result(10) is item
    scheduler.close()
    ((what, seconds),) = notes.notes
    assert what == "waited"
    assert 1.0 <= seconds <= 5.0  # ticks of the clock, which the scheduler also reads for other things
