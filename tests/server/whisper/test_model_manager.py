from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server.errors import Busy
from localwhisper_server.whisper.chunks import Chunk, ChunkResult
from localwhisper_server.whisper.devices import SMALLEST, Device
from localwhisper_server.whisper.model_manager import IDLE_SECONDS, RETRY_SECONDS, ModelManager, is_out_of_memory
from tests.server.engine_double import OUT_OF_MEMORY, EngineDouble, chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

GPU = Device("cuda", "float16", "1 CUDA device(s) found")
CPU = Device("cpu", "int8", "as set")
# What CTranslate2 raises: it has one class for everything.
CUDA = RuntimeError(OUT_OF_MEMORY)
CUBLAS = RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED")


class Gpu:
    """A device with room for so many chunks at a time, by precision; a precision without an entry cannot be loaded."""

    def __init__(self, room: dict[str, int], failure: Exception = CUDA) -> None:
        self.room, self.failure, self.now = room, failure, 0.0
        self.batches: list[tuple[str, int]] = []
        self.tried: list[str] = []  # loads
        self.loaded: list[str] = []
        self.engines: weakref.WeakSet[EngineDouble] = weakref.WeakSet()

    def load(self, device: Device) -> Any:
        """Load a model; never two at a time."""
        assert not list(self.engines)
        self.tried.append(device.compute_type)
        self._check_loaded(device)
        engine = EngineDouble(on_batch=partial(self._run, device), answer=_offset)
        self.engines.add(engine)
        self.loaded.append(device.compute_type)
        return engine

    def model_manager(self, device: Device = GPU, *, unload_after: float | None = None) -> ModelManager:
        """Return a model manager on this device."""
        smaller = SMALLEST if device == GPU else None
        return ModelManager(self.load, device, clock=lambda: self.now, smaller=smaller, unload_after=unload_after)

    def _run(self, device: Device, chunks: Sequence[Chunk]) -> None:
        self._check_loaded(device)
        self.batches.append((device.compute_type, len(chunks)))
        if len(chunks) > self.room[device.compute_type]:
            raise self._new_failure()

    def _check_loaded(self, device: Device) -> None:
        if device.compute_type not in self.room:
            raise self._new_failure()

    def _new_failure(self) -> Exception:
        """Return a new one each time: one that is kept would keep the frames it passed."""
        return type(self.failure)(*self.failure.args)


def _offset(chunk: Chunk) -> ChunkResult:
    return ChunkResult(f"{chunk.offset:g}", ())


def _chunks(count: int) -> list[Chunk]:
    return [chunk(float(number)) for number in range(count)]


def _run(model_manager: ModelManager, count: int) -> None:
    """Check that every chunk gets its own result, in order."""
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
    """As CTranslate2, CUDA and C++ report it."""
    assert is_out_of_memory(failure) is expected


def test_two_threads_load_one_model() -> None:
    """The first one loads it, the others wait."""
    gpu = Gpu({"float16": 8})
    model_manager = gpu.model_manager()
    together = threading.Barrier(4)

    def run(_: int) -> None:
        together.wait(10)
        _run(model_manager, 2)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert len(gpu.loaded) == 1


def test_a_batch_that_fits_is_run_at_once() -> None:
    """The model is loaded once, when it is first needed."""
    gpu = Gpu({"float16": 8})
    model_manager = gpu.model_manager()
    assert not model_manager.loaded
    _run(model_manager, 8)
    _run(model_manager, 3)
    assert model_manager.loaded
    assert (gpu.loaded, gpu.batches) == (["float16"], [("float16", 8), ("float16", 3)])


@pytest.mark.parametrize("failure", [CUDA, CUBLAS, MemoryError()], ids=str)
def test_a_batch_that_does_not_fit_is_halved(failure: Exception) -> None:
    """Until it fits; the next batch is cut to that size at once."""
    gpu = Gpu({"float16": 2}, failure)
    model_manager = gpu.model_manager()
    _run(model_manager, 8)
    assert [size for _, size in gpu.batches] == [8, 4, 2, 2, 2, 2]
    gpu.batches.clear()
    _run(model_manager, 5)
    assert [size for _, size in gpu.batches] == [2, 2, 1]
    assert model_manager.device == GPU


def test_results_before_the_failure_are_kept() -> None:
    """Chunks that are decoded are not decoded again."""
    gpu = Gpu({"float16": 4})
    model_manager = gpu.model_manager()
    _run(model_manager, 8)
    gpu.room["float16"] = 1
    gpu.batches.clear()
    _run(model_manager, 4)
    assert [size for _, size in gpu.batches] == [4, 2, 1, 1, 1, 1]


def test_a_single_chunk_that_does_not_fit_needs_the_smaller_precision() -> None:
    """The smaller precision takes half the memory; /health shows it."""
    gpu = Gpu({"float16": 0, SMALLEST: 1})
    model_manager = gpu.model_manager()
    _run(model_manager, 2)
    assert gpu.loaded == ["float16", SMALLEST]
    assert model_manager.device == Device("cuda", SMALLEST, "out of memory")
    assert len(gpu.loaded) == 2


@pytest.mark.parametrize("device", [GPU, CPU, Device("cuda", SMALLEST, "as set")], ids=lambda d: d.name)
def test_nothing_fits_is_busy(device: Device) -> None:
    """With the time after which more is tried; the memory is freed even while the error is referenced."""
    gpu = Gpu({"float16": 0, "int8": 0, SMALLEST: 0})
    model_manager = gpu.model_manager(device)
    with pytest.raises(Busy) as refused:
        model_manager.run(_chunks(2))
    assert refused.value.retry_after == RETRY_SECONDS
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


def test_warming_up_falls_back_too() -> None:
    """Warming up falls back to the smaller precision too, and raises Busy if that does not fit either."""
    gpu = Gpu({SMALLEST: 1})
    model_manager = gpu.model_manager()
    model_manager.warm_up()
    assert model_manager.device.compute_type == SMALLEST
    gpu = Gpu({"float16": 0, SMALLEST: 0})
    with pytest.raises(Busy):
        gpu.model_manager().warm_up()


@pytest.mark.parametrize("failure", [ValueError("do not support"), RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")])
def test_a_smaller_precision_that_does_not_run_is_dropped(failure: Exception) -> None:
    """Some cards fail only when they run it. Callers get Busy, as without it, and it is not tried again."""
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


def test_the_first_precision_comes_back() -> None:
    """The first precision is tried again some time after the last failure, not before, and only when idle."""
    gpu = Gpu({"float16": 0, SMALLEST: 1})
    model_manager = gpu.model_manager()
    _run(model_manager, 2)
    gpu.room = {"float16": 8, SMALLEST: 16}
    gpu.now = RETRY_SECONDS - 0.1
    gpu.batches.clear()
    assert model_manager.idle(IDLE_SECONDS) == pytest.approx(0.1)
    _run(model_manager, 2)
    gpu.now = RETRY_SECONDS
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
    assert gpu.loaded == ["float16", SMALLEST, "float16"]  # and there it stays


def test_a_load_that_does_not_fit_does_not_halve_the_batch() -> None:
    """One load fails; the smaller model runs this and all later batches whole."""
    gpu = Gpu({SMALLEST: 8})
    model_manager = gpu.model_manager()
    for _ in range(2):
        _run(model_manager, 8)
    assert gpu.tried == ["float16", SMALLEST]
    assert gpu.batches == [(SMALLEST, 8)] * 2


def test_a_failed_recovery_costs_one_load() -> None:
    """The smaller model is loaded again before the next request; the next attempt comes later."""
    gpu = Gpu({SMALLEST: 8})
    model_manager = gpu.model_manager()
    _run(model_manager, 8)
    for times in (1, 2, 4):
        gpu.tried.clear()
        gpu.now += times * RETRY_SECONDS
        assert model_manager.idle(IDLE_SECONDS) == 2 * times * RETRY_SECONDS
        assert gpu.tried == ["float16", SMALLEST]
    gpu.batches.clear()
    _run(model_manager, 8)
    assert gpu.batches == [(SMALLEST, 8)]


def test_an_unloaded_model_is_loaded_in_its_first_precision() -> None:
    """It has to be loaded in any case, so its first precision is tried at once."""
    gpu = Gpu({SMALLEST: 8})
    model_manager = gpu.model_manager(unload_after=30.0)
    _run(model_manager, 1)
    assert model_manager.idle(29.0) == 1.0
    assert model_manager.idle(30.0) is None
    assert not model_manager.loaded
    gpu.room["float16"] = 8
    gpu.now = RETRY_SECONDS
    _run(model_manager, 1)
    assert model_manager.device == GPU


def test_whole_batches_come_back_without_a_load() -> None:
    """If only the batch was too large."""
    gpu = Gpu({"float16": 1})
    model_manager = gpu.model_manager()
    _run(model_manager, 2)
    gpu.room["float16"] = 2
    gpu.now = RETRY_SECONDS
    _run(model_manager, 2)
    assert gpu.batches[-1] == ("float16", 2)
    assert len(gpu.loaded) == 1


def test_another_error_is_raised() -> None:
    """It is raised to the scheduler, and is no reason to use less memory."""
    gpu = Gpu({"float16": 0}, RuntimeError("CUDA failed with error device-side assert triggered"))
    model_manager = gpu.model_manager()
    with pytest.raises(RuntimeError, match="assert triggered"):
        model_manager.run(_chunks(4))
    assert gpu.batches == [("float16", 4)]
    assert model_manager.loaded


def test_an_idle_model_is_unloaded_and_loaded_again() -> None:
    """Its memory is free in between; unloading twice is no error."""
    gpu = Gpu({"float16": 4})
    model_manager = gpu.model_manager()
    _run(model_manager, 1)
    model_manager.unload()
    model_manager.unload()
    assert not model_manager.loaded
    assert not list(gpu.engines)
    _run(model_manager, 1)
    assert len(gpu.loaded) == 2
