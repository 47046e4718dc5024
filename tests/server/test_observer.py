"""What an observer is told of the model."""

from __future__ import annotations

from typing import Any

from localwhisper_server import observer
from localwhisper_server.whisper.devices import Device
from localwhisper_server.whisper.model_manager import ModelManager


class Notes(observer.Observer):
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []

    def model_loaded(self) -> None:
        self.notes.append(("loaded",))

    def out_of_memory(self) -> None:
        self.notes.append(("memory",))


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
