from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server.engine import Device
from localwhisper_server.errors import Busy
from localwhisper_server.keeper import RECOVER_SECONDS, SMALLER_COMPUTE_TYPE, Keeper, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

GPU, CPU = Device("cuda", "float16", "as set"), Device("cpu", "int8", "as set")
OUT_OF_MEMORY = "CUDA failed with error out of memory"


class Card:
    """A device with room for so many chunks at a time, fewer where the model is large; makes its engines."""

    def __init__(self, room: int, *, small_room: int | None = None) -> None:
        self.room = {"float16": room, "int8": room, SMALLER_COMPUTE_TYPE: room if small_room is None else small_room}
        self.loaded: list[str] = []
        self.batches: list[int] = []
        self.now = 0.0
        self.fits = True

    def load(self, device: Device) -> Any:
        """Load a model."""
        if not self.fits:
            raise RuntimeError(OUT_OF_MEMORY)
        self.loaded.append(device.compute_type)
        return _Engine(self, device.compute_type)

    def keeper(self, device: Device = GPU) -> Keeper:
        """Return a keeper on this device."""
        return Keeper(self.load, device, clock=lambda: self.now)


class _Engine:
    def __init__(self, card: Card, compute_type: str) -> None:
        self._card, self._compute_type = card, compute_type

    def run(self, chunks: Sequence[Any]) -> list[Any]:
        if any(isinstance(chunk, Exception) for chunk in chunks):
            raise next(chunk for chunk in chunks if isinstance(chunk, Exception))
        if len(chunks) > self._card.room[self._compute_type]:
            raise RuntimeError(OUT_OF_MEMORY)
        self._card.batches.append(len(chunks))
        return [chunk * 2 for chunk in chunks]


def _run(keeper: Keeper, *chunks: Any) -> list[Any]:
    return keeper.run(chunks)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("failure", "memory"),
    [
        (RuntimeError(OUT_OF_MEMORY), True),
        (RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (RuntimeError("Library libcudnn_ops.so.9 is not found or cannot be loaded"), False),
        (ValueError("unsupported"), False),
    ],
    ids=str,
)
def test_signs_of_a_full_memory(failure: Exception, memory: bool) -> None:  # noqa: FBT001 - a table's column
    """CTranslate2 has no class for it, so its words are read."""
    assert is_out_of_memory(failure) is memory


def test_what_fits_is_run_at_once() -> None:
    """The model is loaded once, when it is first needed."""
    card = Card(8)
    keeper = card.keeper()
    assert not keeper.loaded
    assert _run(keeper, 1, 2, 3) == [2, 4, 6]
    assert _run(keeper, 4) == [8]
    assert (card.batches, card.loaded, keeper.loads, keeper.loaded) == ([3, 1], ["float16"], 1, True)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    """Until it does; results stay in order, and the next batch is not tried whole again."""
    card = Card(2)
    keeper = card.keeper()
    assert _run(keeper, *range(8)) == [number * 2 for number in range(8)]
    assert card.batches == [2, 2, 2, 2]
    assert _run(keeper, 1, 2, 3) == [2, 4, 6]
    assert card.batches[4:] == [2, 1]
    assert card.loaded == ["float16"]


def test_one_chunk_that_does_not_fit_takes_a_smaller_model() -> None:
    """About half the size; health shows it."""
    card = Card(0, small_room=4)
    keeper = card.keeper()
    assert _run(keeper, 1, 2) == [2, 4]
    assert card.loaded == ["float16", SMALLER_COMPUTE_TYPE]
    assert (keeper.device.compute_type, keeper.device.reason) == (SMALLER_COMPUTE_TYPE, "out of memory")


@pytest.mark.parametrize("device", [GPU, CPU], ids=["cuda", "cpu"])
def test_where_nothing_fits_callers_come_back_later(device: Device) -> None:
    """Busy, not failed; the memory that the model held is given back, and it is tried again next time."""
    card = Card(0)
    keeper = card.keeper(device)
    with pytest.raises(Busy, match="memory") as refused:
        _run(keeper, 1, 2)
    assert refused.value.retry_after == RECOVER_SECONDS
    assert not keeper.loaded
    card.room = dict.fromkeys(card.room, 8)
    assert _run(keeper, 3) == [6]


def test_a_model_that_does_not_fit_itself_is_busy() -> None:
    """A game took the memory while the model was unloaded."""
    card = Card(8)
    keeper = card.keeper()
    card.fits = False
    with pytest.raises(Busy):
        _run(keeper, 1)
    card.fits = True
    assert _run(keeper, 1) == [2]


def test_after_a_while_the_first_settings_are_tried_again() -> None:
    """Not before: a cramped device is left alone."""
    card = Card(0, small_room=4)
    keeper = card.keeper()
    _run(keeper, 1, 2)
    card.room["float16"] = 8
    card.now = RECOVER_SECONDS - 1
    _run(keeper, 1, 2)
    assert card.loaded == ["float16", SMALLER_COMPUTE_TYPE]
    card.now = RECOVER_SECONDS
    _run(keeper, 1, 2)
    assert card.loaded == ["float16", SMALLER_COMPUTE_TYPE, "float16"]
    assert keeper.device == GPU
    assert card.batches[-1] == 2


def test_a_smaller_batch_recovers_without_a_new_model() -> None:
    """Only the size was changed."""
    card = Card(2)
    keeper = card.keeper()
    _run(keeper, 1, 2, 3, 4)
    card.room["float16"] = 8
    card.now = RECOVER_SECONDS + 1
    _run(keeper, 1, 2, 3, 4)
    assert card.batches[-1] == 4
    assert card.loaded == ["float16"]


def test_other_failures_are_not_the_keepers() -> None:
    """The scheduler finds out whose they are."""
    keeper = Card(8).keeper()
    with pytest.raises(RuntimeError, match="cudnn"):
        _run(keeper, 1, RuntimeError("Library libcudnn_ops.so.9 is not found"))
    assert keeper.loaded


def test_an_idle_model_is_unloaded_and_comes_back() -> None:
    """Unloading twice is nothing."""
    card = Card(8)
    keeper = card.keeper()
    keeper.unload()
    _run(keeper, 1)
    keeper.unload()
    keeper.unload()
    assert not keeper.loaded
    assert _run(keeper, 2) == [4]
    assert keeper.loads == 2
