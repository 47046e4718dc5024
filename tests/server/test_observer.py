"""What an observer is told of the model."""

from __future__ import annotations

from typing import Any

from localwhisper_server import observer
from localwhisper_server.whisper.devices import Device
from localwhisper_server.whisper.model_manager import ModelManager


class Notes(observer.Observer):
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.model_loaded = lambda: self.notes.append("loaded")  # type: ignore[method-assign]
        self.out_of_memory = lambda: self.notes.append("memory")  # type: ignore[method-assign]


class Engine:
    """An engine that has room for one chunk."""

    def run(self, chunks: Any) -> Any:
        if len(chunks) > 1:
            raise RuntimeError("CUDA failed with error out of memory")
        return list(chunks)


def test_the_model_manager_reports_loads_and_a_lack_of_memory() -> None:
    """Each time."""
    notes, device, load = Notes(), Device("cpu", "int8", "test"), lambda _: Engine()
    manager: Any = ModelManager(load, device, clock=lambda: 0.0, observer=notes)  # type: ignore[arg-type,return-value]
    assert manager.run([1, 2]) == [1, 2]
    manager.unload()
    manager.run([3])
    assert notes.notes == ["loaded", "memory", "loaded"]
