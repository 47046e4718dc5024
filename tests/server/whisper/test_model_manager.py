from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localwhisper_server.errors import Busy
from localwhisper_server.types import Decoding
from localwhisper_server.whisper.chunks import Chunk, ChunkResult
from localwhisper_server.whisper.devices import SMALLEST, Device
from localwhisper_server.whisper.model_manager import IDLE_SECONDS, RECOVER_SECONDS, ModelManager, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

GPU = Device("cuda", "float16", "1 CUDA device(s) found")
CPU = Device("cpu", "int8", "as set")
# What CTranslate2 raises; it has one class for everything.
CUDA = RuntimeError("CUDA failed with error out of memory")
CUBLAS = RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED")


def _chunks(count: int) -> list[Chunk]:
    return [Chunk(np.zeros((80, 100), np.float32), 1.0, float(number), Decoding()) for number in range(count)]


class Engine:
    """Hears each chunk's offset in it, as long as the device has room for them."""

    def __init__(self, gpu: Gpu, device: Device) -> None:
        self.gpu, self.device = gpu, device

    def warm_up(self) -> None:
        """Decode a moment."""
        self.run(_chunks(1))

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Run one batch."""
        self.gpu.check(self.device)
        self.gpu.batches.append((self.device.compute_type, len(chunks)))
        if len(chunks) > self.gpu.room[self.device.compute_type]:
            raise self.gpu.fresh_failure()
        return [ChunkResult(f"{chunk.offset:g}", ()) for chunk in chunks]


class Gpu:
    """A device with room for so many chunks at a time, by compute type; none at all for a model without an entry."""

    def __init__(self, room: dict[str, int], failure: Exception = CUDA) -> None:
        self.room, self.failure, self.now = room, failure, 0.0
        self.batches: list[tuple[str, int]] = []
        self.tried: list[str] = []  # loads
        self.loaded: list[str] = []
        self.engines: weakref.WeakSet[Engine] = weakref.WeakSet()

    def check(self, device: Device) -> None:
        """Raise where the model does not fit."""
        if device.compute_type not in self.room:
            raise self.fresh_failure()

    def fresh_failure(self) -> Exception:
        """Return a new one, as it is each time: one that is kept would keep the frames it passed."""
        return type(self.failure)(*self.failure.args)

    def load(self, device: Device) -> Any:
        """Load a model; never two at a time."""
        assert not list(self.engines)
        self.tried.append(device.compute_type)
        self.check(device)
        engine = Engine(self, device)
        self.engines.add(engine)
        self.loaded.append(device.compute_type)
        return engine

    def model_manager(self, device: Device = GPU, *, unload_after: float | None = None) -> ModelManager:
        """Return a model_manager on this device."""
        smaller = SMALLEST if device == GPU else None
        return ModelManager(self.load, device, clock=lambda: self.now, smaller=smaller, unload_after=unload_after)


def _run(model_manager: ModelManager, count: int) -> None:
    """Every chunk gets its own result, in order, however it went."""
    assert [result.language for result in model_manager.run(_chunks(count))] == [f"{number}" for number in range(count)]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (CUDA, True),
        (CUBLAS, True),
        (RuntimeError("cuDNN failed with status CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA failed with error an illegal memory access was encountered"), False),
        (ValueError("unsupported"), False),
    ],
    ids=str,
)
def test_what_is_out_of_memory(failure: Exception, expected: bool) -> None:  # noqa: FBT001 - a table's column
    """In the words of CTranslate2, CUDA and C++."""
    assert is_out_of_memory(failure) is expected


def test_two_threads_load_one_model() -> None:
    """Whoever comes first; the other waits for it."""
    gpu = Gpu({"float16": 8})
    model_manager = gpu.model_manager()
    together = threading.Barrier(4)

    def run(_: int) -> None:
        together.wait(10)
        _run(model_manager, 2)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert model_manager.loads == 1


def test_a_batch_that_fits_is_run_at_once() -> None:
    """The model is loaded once, when it is first needed."""
    gpu = Gpu({"float16": 8})
    model_manager = gpu.model_manager()
    assert not model_manager.loaded
    _run(model_manager, 8)
    _run(model_manager, 3)
    assert model_manager.loaded
    assert (model_manager.loads, gpu.batches) == (1, [("float16", 8), ("float16", 3)])


@pytest.mark.parametrize("failure", [CUDA, CUBLAS, MemoryError()], ids=str)
def test_too_large_a_batch_is_halved(failure: Exception) -> None:
    """Until it fits, and stays so; the next one is not tried in vain."""
    gpu = Gpu({"float16": 2}, failure)
    model_manager = gpu.model_manager()
    _run(model_manager, 8)
    assert [size for _, size in gpu.batches] == [8, 4, 2, 2, 2, 2]
    gpu.batches.clear()
    _run(model_manager, 5)
    assert [size for _, size in gpu.batches] == [2, 2, 1]
    assert model_manager.device == GPU


def test_results_before_the_failure_are_kept() -> None:
    """What was decoded is not decoded again."""
    gpu = Gpu({"float16": 4})
    model_manager = gpu.model_manager()
    _run(model_manager, 8)
    gpu.room["float16"] = 1
    gpu.batches.clear()
    _run(model_manager, 4)
    assert [size for _, size in gpu.batches] == [4, 2, 1, 1, 1, 1]


def test_one_chunk_too_many_makes_the_model_smaller() -> None:
    """It takes half the memory; /health says so."""
    gpu = Gpu({"float16": 0, SMALLEST: 1})
    model_manager = gpu.model_manager()
    _run(model_manager, 2)
    assert gpu.loaded == ["float16", SMALLEST]
    assert model_manager.device == Device("cuda", SMALLEST, "out of memory")
    assert model_manager.loads == 2


@pytest.mark.parametrize("device", [GPU, CPU, Device("cuda", SMALLEST, "as set")], ids=lambda d: d.name)
def test_nothing_fits_is_busy(device: Device) -> None:
    """A 503 with the time after which more is tried; the memory is given back, even while the error is kept."""
    gpu = Gpu({"float16": 0, "int8": 0, SMALLEST: 0})
    model_manager = gpu.model_manager(device)
    with pytest.raises(Busy) as refused:
        model_manager.run(_chunks(2))
    assert refused.value.retry_after == RECOVER_SECONDS
    assert not model_manager.loaded
    assert not list(gpu.engines)
    assert str(refused.value.__cause__) == str(CUDA)  # for the log


def test_a_model_that_does_not_fit_is_busy() -> None:
    """Memory may run out while loading, too; as soon as there is some, it works again."""
    gpu = Gpu({})
    model_manager = gpu.model_manager()
    for _ in range(2):
        with pytest.raises(Busy):
            model_manager.run(_chunks(1))
    gpu.room[SMALLEST] = 4
    _run(model_manager, 1)
    assert model_manager.device.compute_type == SMALLEST


def test_a_start_takes_what_it_gets() -> None:
    """Warming up goes down the same ladder as work does, and is told when there is no rung left."""
    gpu = Gpu({SMALLEST: 1})
    model_manager = gpu.model_manager()
    assert model_manager.warm_up().device.compute_type == SMALLEST  # type: ignore[attr-defined] # the double's
    gpu = Gpu({"float16": 0, SMALLEST: 0})
    with pytest.raises(Busy):
        gpu.model_manager().warm_up()


@pytest.mark.parametrize("failure", [ValueError("do not support"), RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")])
def test_a_smaller_precision_that_does_not_run_is_no_way_out(failure: Exception) -> None:
    """Some cards say so only at work. Callers are told to come back, as without it, and it is not tried again."""
    gpu = Gpu({"float16": 0, SMALLEST: 0})
    load = gpu.load

    def refusing(device: Device) -> Any:
        if device.compute_type == SMALLEST:
            raise failure
        return load(device)

    model_manager = ModelManager(refusing, GPU, clock=lambda: gpu.now, smaller=SMALLEST)
    for _ in range(2):
        with pytest.raises(Busy):
            model_manager.run(_chunks(1))
        assert model_manager.device == GPU
    assert gpu.loaded == ["float16", "float16"]
    gpu.room["float16"] = 1
    _run(model_manager, 1)


def test_it_recovers_by_itself() -> None:
    """When the game is over: the first settings are tried again, some time after the last failure and not before."""
    gpu = Gpu({"float16": 0, SMALLEST: 1})
    model_manager = gpu.model_manager()
    _run(model_manager, 2)
    gpu.room = {"float16": 8, SMALLEST: 16}
    gpu.now = RECOVER_SECONDS - 0.1
    gpu.batches.clear()
    assert model_manager.idle(IDLE_SECONDS) == pytest.approx(0.1)
    _run(model_manager, 2)
    gpu.now = RECOVER_SECONDS
    _run(model_manager, 2)
    assert gpu.batches == [(SMALLEST, 1), (SMALLEST, 1), (SMALLEST, 2)]  # no reload while there is work
    assert model_manager.idle(0.0) == IDLE_SECONDS
    model_manager.idle(IDLE_SECONDS)
    assert model_manager.device == GPU
    _run(model_manager, 2)
    assert gpu.batches[-1] == ("float16", 2)
    gpu.now *= 10
    assert model_manager.idle(gpu.now) is None
    _run(model_manager, 2)
    assert model_manager.loads == 3  # and there it stays


def test_a_load_that_does_not_fit_leaves_the_batch_alone() -> None:
    """One load fails, the smaller model takes the whole batch, and so does every later one."""
    gpu = Gpu({SMALLEST: 8})
    model_manager = gpu.model_manager()
    for _ in range(2):
        _run(model_manager, 8)
    assert gpu.tried == ["float16", SMALLEST]
    assert gpu.batches == [(SMALLEST, 8)] * 2


def test_a_recovery_in_vain_costs_one_failed_load() -> None:
    """The smaller model is there again before the next request, with its batch; the next attempt comes later."""
    gpu = Gpu({SMALLEST: 8})
    model_manager = gpu.model_manager()
    _run(model_manager, 8)
    for times in (1, 2, 4):
        gpu.tried.clear()
        gpu.now += times * RECOVER_SECONDS
        assert model_manager.idle(IDLE_SECONDS) == 2 * times * RECOVER_SECONDS
        assert gpu.tried == ["float16", SMALLEST]
    gpu.batches.clear()
    _run(model_manager, 8)
    assert gpu.batches == [(SMALLEST, 8)]


def test_a_model_that_comes_back_comes_back_whole() -> None:
    """It has to be loaded in any case; when the game is over, it is in its first precision at once."""
    gpu = Gpu({SMALLEST: 8})
    model_manager = gpu.model_manager(unload_after=30.0)
    _run(model_manager, 1)
    assert model_manager.idle(29.0) == 1.0
    assert model_manager.idle(30.0) is None
    assert not model_manager.loaded
    gpu.room["float16"] = 8
    gpu.now = RECOVER_SECONDS
    _run(model_manager, 1)
    assert model_manager.device == GPU


def test_a_larger_batch_comes_back_without_loading() -> None:
    """Where only the batch was too large."""
    gpu = Gpu({"float16": 1})
    model_manager = gpu.model_manager()
    _run(model_manager, 2)
    gpu.room["float16"] = 2
    gpu.now = RECOVER_SECONDS
    _run(model_manager, 2)
    assert gpu.batches[-1] == ("float16", 2)
    assert model_manager.loads == 1


def test_another_fault_passes() -> None:
    """It is the scheduler's business, and no reason to shrink."""
    gpu = Gpu({"float16": 0}, RuntimeError("CUDA failed with error device-side assert triggered"))
    model_manager = gpu.model_manager()
    with pytest.raises(RuntimeError, match="assert triggered"):
        model_manager.run(_chunks(4))
    assert gpu.batches == [("float16", 4)]
    assert model_manager.loaded


def test_an_idle_model_leaves_and_comes_back() -> None:
    """Its memory is free in between; unloading twice is no error."""
    gpu = Gpu({"float16": 4})
    model_manager = gpu.model_manager()
    _run(model_manager, 1)
    model_manager.unload()
    model_manager.unload()
    assert not model_manager.loaded
    assert not list(gpu.engines)
    _run(model_manager, 1)
    assert model_manager.loads == 2
