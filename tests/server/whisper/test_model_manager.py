from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server.errors import Busy
from localwhisper_server.observer import ModelObserver
from localwhisper_server.types import BatchLimits
from localwhisper_server.whisper.chunks import Chunk, ChunkResult
from localwhisper_server.whisper.devices import SMALLEST, Device, is_out_of_memory
from localwhisper_server.whisper.model_manager import (
    BATCH_SECONDS,
    CPU_SIZES,
    GPU_SIZES,
    IDLE_SECONDS,
    RETRY_SECONDS,
    SHARE_SECONDS,
    ModelManager,
)
from localwhisper_server.whisper.model_memory import ModelMemory
from tests.server.engine_double import OUT_OF_MEMORY, SECONDS, EngineDouble, chunk

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
    """When it is first needed: the first one loads it, the others wait."""
    gpu = Gpu({"float16": 8})
    model_manager = gpu.model_manager()
    assert not model_manager.loaded
    together = threading.Barrier(4)

    def run(_: int) -> None:
        together.wait(60)
        _run(model_manager, 2)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert model_manager.loaded
    assert gpu.loaded == ["float16"]
    assert gpu.batches == [("float16", 2)] * 4


@pytest.mark.parametrize("failure", [CUDA, CUBLAS, MemoryError()], ids=str)
def test_a_batch_that_does_not_fit_is_halved(failure: Exception) -> None:
    """Until it fits; the next batch is cut to that size at once, and whole ones come back after a while."""
    gpu = Gpu({"float16": 2}, failure)
    model_manager = gpu.model_manager()
    _run(model_manager, 8)
    assert [size for _, size in gpu.batches] == [8, 4, 2, 2, 2, 2]
    gpu.batches.clear()
    _run(model_manager, 5)
    assert [size for _, size in gpu.batches] == [2, 2, 1]
    gpu.room["float16"] = 1
    gpu.batches.clear()
    _run(model_manager, 4)
    assert [size for _, size in gpu.batches] == [2, 1, 1, 1, 1]
    gpu.room["float16"] = 8
    gpu.now = RETRY_SECONDS
    gpu.batches.clear()
    _run(model_manager, 8)
    assert gpu.batches == [("float16", 8)]
    assert gpu.loaded == ["float16"]


def test_a_single_chunk_that_does_not_fit_needs_the_smaller_precision() -> None:
    """The smaller precision takes half the memory; /health shows it."""
    gpu = Gpu({"float16": 0, SMALLEST: 1})
    model_manager = gpu.model_manager()
    _run(model_manager, 2)
    assert gpu.loaded == ["float16", SMALLEST]
    assert model_manager.device == Device("cuda", SMALLEST, "out of memory")


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
    gpu.room[SMALLEST] = 0  # the model fits, but not a chunk
    with pytest.raises(Busy):
        model_manager.warm_up()
    gpu.room[SMALLEST] = 4
    model_manager.warm_up()
    _run(model_manager, 1)
    assert model_manager.device.compute_type == SMALLEST


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


def test_a_failed_recovery_costs_one_load() -> None:
    """The smaller model is loaded again before the next request; the next attempt comes later.

    A load that does not fit does not halve the batch.
    """
    gpu = Gpu({SMALLEST: 8})
    model_manager = gpu.model_manager()
    _run(model_manager, 8)
    _run(model_manager, 8)
    assert gpu.tried == ["float16", SMALLEST]
    assert gpu.batches == [(SMALLEST, 8)] * 2
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
    for _ in range(2):
        assert model_manager.idle(30.0) is None
    assert not model_manager.loaded
    assert not list(gpu.engines)
    gpu.room["float16"] = 8
    gpu.now = RETRY_SECONDS
    _run(model_manager, 1)
    assert model_manager.device == GPU


def test_another_error_is_raised() -> None:
    """It is raised to the scheduler, and is no reason to use less memory."""
    gpu = Gpu({"float16": 0}, RuntimeError("CUDA failed with error device-side assert triggered"))
    model_manager = gpu.model_manager()
    with pytest.raises(RuntimeError, match="assert triggered"):
        model_manager.run(_chunks(4))
    assert gpu.batches == [("float16", 4)]
    assert model_manager.loaded


def test_the_observer_is_told_of_loads_and_of_a_lack_of_memory() -> None:
    """Each time."""
    notes: list[str] = []

    class Notes(ModelObserver):
        def model_loaded(self) -> None:
            notes.append("loaded")

        def out_of_memory(self) -> None:
            notes.append("memory")

    gpu = Gpu({"float16": 1})
    model_manager = ModelManager(gpu.load, GPU, clock=lambda: 0.0, observer=Notes())
    _run(model_manager, 2)
    model_manager.unload()
    _run(model_manager, 1)
    assert notes == ["loaded", "memory", "loaded"]


# How large a batch pays


class Machine:
    """A machine on which a batch takes so many seconds, by its size."""

    def __init__(self, seconds: dict[int, float], device: Device = GPU) -> None:
        self.seconds, self.now = seconds, 100.0
        self.room, self.failure = 1000, OUT_OF_MEMORY
        engine: Any = EngineDouble(on_batch=self._run)
        self.sizes: list[int] = []
        self.model_manager = ModelManager(lambda _: engine, device, clock=lambda: self.now)

    def limits(self, items: int = 0) -> BatchLimits:
        """Measure it."""
        return self.model_manager.measure_limits(chunk(seconds=5.0), items=items)

    def _run(self, chunks: Sequence[Chunk]) -> None:
        self.sizes.append(len(chunks))
        if len(chunks) > self.room:
            raise RuntimeError(self.failure)
        self.now += self.seconds[len(chunks)]


@pytest.mark.parametrize(
    ("device", "seconds", "best", "tried"),
    [
        (CPU, {2: 1.0, 8: 2.0}, 8, [2, 8]),
        (CPU, {2: 1.0, 8: 3.9}, 2, [2, 8]),  # saves too little
        (CPU, {2: 1.0, 8: 9.0}, 2, [2, 8]),
        (GPU, {4: 0.1, 16: 0.3, 32: 0.5, 64: 0.9, 128: 1.7}, 128, [4, 16, 32, 64, 128]),
        (GPU, {4: 1.0, 16: 2.0, 32: 3.0}, 32, [4, 16, 32]),  # a larger one would keep a message waiting
        (GPU, {4: 1.0, 16: 2.0, 32: 4.0}, 16, [4, 16, 32]),
        (GPU, {4: 1.0, 16: 9.0}, 4, [4, 16]),  # no larger one is tried
    ],
    ids=str,
)
def test_the_size_that_pays(device: Device, seconds: dict[int, float], best: int, tried: list[int]) -> None:
    """Larger batches are tried as long as they save time per chunk."""
    machine = Machine(seconds, device)
    assert machine.limits().items == best
    assert machine.sizes == tried
    assert set(tried) <= set(CPU_SIZES if device == CPU else GPU_SIZES)


def test_a_size_set_by_hand_is_kept() -> None:
    """The speed is measured all the same, with a small batch."""
    machine = Machine({1: 1.0, 2: 2.0}, CPU)
    assert [machine.limits(items).items for items in (1, 200)] == [1, 200]
    assert machine.sizes == [1, 2]


@pytest.mark.parametrize(("room", "best"), [(20, 16), (4, 4), (3, 1)])
def test_a_batch_that_does_not_fit_is_not_used(room: int, best: int) -> None:
    """Larger batches are not tried then; any other error is raised."""
    machine = Machine({4: 1.0, 16: 2.0, 32: 3.0})
    machine.room = room
    limits = machine.limits()
    assert limits.items == best
    # No more than what fitted, however fast the card is; but a window always has to.
    assert limits.frames == max(3000, best * 1000)
    machine.failure = "an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal"):
        machine.limits()


def test_the_frames_of_a_batch_depend_on_the_speed() -> None:
    """A batch, and one request's share, may take so many seconds; a slow machine still takes a whole window."""
    limits = Machine({4: 0.25, 16: 0.5, 32: 0.5, 64: 2.0}).limits()
    assert limits.frames == int(BATCH_SECONDS * 32 * 1000 / 0.5)
    assert limits.share == int(SHARE_SECONDS * 32 * 1000 / 0.5)
    limits = Machine({2: 60.0, 8: 600.0}, CPU).limits()
    assert (limits.frames, limits.share) == (3000, 1500)
    assert Machine({2: 0.0, 8: 0.0}, CPU).limits().frames > 3000  # a clock without progress is no error


# Beside other models


class Neighbour:
    """Another model in the same memory, which frees a place on the device when it is unloaded."""

    def __init__(self, gpu: Gpu, *, busy: bool = False) -> None:
        self.gpu, self.busy, self.used, self.loaded = gpu, busy, 0.0, True

    def finish_and_unload(self) -> bool:
        """Leave room for eight chunks."""
        self.loaded = False
        self.gpu.room = {"float16": 8, SMALLEST: 16}
        return True

    def resume(self) -> None:
        """Do nothing."""


def _beside(gpu: Gpu, neighbour: Neighbour) -> ModelManager:
    memory = ModelMemory(clock=lambda: gpu.now)
    memory.add(neighbour)
    return ModelManager(gpu.load, GPU, clock=lambda: gpu.now, smaller=SMALLEST, memory=memory)


@pytest.mark.parametrize("busy", [False, True])
def test_another_model_is_unloaded_before_this_one_gets_smaller(*, busy: bool) -> None:
    """A load that does not fit waits for it, even if it has work."""
    gpu = Gpu({SMALLEST: 1})
    neighbour = Neighbour(gpu, busy=busy)
    model_manager = _beside(gpu, neighbour)
    _run(model_manager, 8)
    assert not neighbour.loaded
    assert model_manager.device == GPU
    assert gpu.tried == ["float16", "float16"]
    assert gpu.batches == [("float16", 8)]


def test_an_idle_model_is_unloaded_for_a_larger_batch() -> None:
    """The batch is not halved."""
    gpu = Gpu({"float16": 1})
    neighbour = Neighbour(gpu)
    _run(_beside(gpu, neighbour), 8)
    assert not neighbour.loaded
    assert gpu.batches == [("float16", 8), ("float16", 8)]


def test_a_model_with_work_stays_if_the_batch_can_be_halved() -> None:
    """Both go on."""
    gpu = Gpu({"float16": 2})
    neighbour = Neighbour(gpu, busy=True)
    _run(_beside(gpu, neighbour), 8)
    assert neighbour.loaded
    assert gpu.batches[-1] == ("float16", 2)


def test_a_model_with_work_is_unloaded_if_not_one_chunk_fits() -> None:
    """This model leaves the memory first, so that two never wait for each other."""
    gpu = Gpu({"float16": 0})
    neighbour = Neighbour(gpu, busy=True)
    _run(_beside(gpu, neighbour), 1)
    assert not neighbour.loaded
    assert gpu.loaded == ["float16", "float16"]


def test_an_engine_keeps_its_vocabulary_while_it_is_unloaded() -> None:
    """Only the weights are loaded again; in another precision, or if it cannot unload, all of it is."""

    class Unloadable(EngineDouble):
        reloads, unloads = 0, True

        def unload(self) -> bool:
            """Say whether the test wants it to work."""
            return self.unloads

        def reload(self) -> None:
            """Count, and fail as often as the test wants."""
            self.reloads += 1
            if self.failures:
                raise self.failures.pop(0)

    made: list[Unloadable] = []

    def load(_: Device) -> Any:
        made.append(Unloadable())
        return made[-1]

    model_manager = ModelManager(load, GPU, clock=lambda: 0.0, smaller=SMALLEST)
    engine = model_manager.engine()
    assert model_manager.unload()
    assert not model_manager.loaded
    assert not model_manager.unload()
    assert model_manager.engine() is engine
    assert (len(made), made[0].reloads) == (1, 1)
    made[0].unloads = False
    assert model_manager.unload()
    assert model_manager.engine() is not engine
    assert model_manager.unload()
    made[1].failures = [RuntimeError(OUT_OF_MEMORY)]
    model_manager.engine()
    assert (len(made), model_manager.device.compute_type) == (3, SMALLEST)


def test_a_model_in_use_is_not_unloaded() -> None:
    """Nor does the caller wait for it."""
    engine = EngineDouble()
    model_manager = ModelManager(lambda _: engine, CPU, clock=lambda: 0.0)  # type: ignore[arg-type, return-value]
    engine.close_gate()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(model_manager.run, _chunks(1))
        engine.wait()
        assert model_manager.running == 1
        assert not model_manager.unload()
        engine.gate.set()
        running.result(60)
    assert model_manager.running == 0
    assert model_manager.unload()


# How many batches at a time pay


class Overlap:
    """A card that decodes two batches at a time in `both` of the seconds that they take one after the other.

    A batch takes 0.1 s and another 0.1 s for each chunk. With `room` for fewer chunks than there are at a time, memory
    runs out.
    """

    def __init__(self, both: float, *, room: int = 1000, device: Device = GPU) -> None:
        self._both, self._room = both, room
        self._lock, self._two = threading.Lock(), threading.Barrier(2)
        self.now, self.batches = 0.0, list[int]()
        self.failure = OUT_OF_MEMORY
        engine: Any = EngineDouble(on_batch=self._run)
        self.model_manager = ModelManager(lambda _: engine, device, clock=lambda: self.now)

    def workers(self, items: int, most: int = 2) -> int:
        """Measure it, for batches of so many chunks."""
        return self.model_manager.measure_workers(chunk(), BatchLimits(items, 9000, 3000), most=most)

    def _run(self, chunks: Sequence[Chunk]) -> None:
        self.batches.append(len(chunks))
        # Halves of a batch are of two threads, whose order is left to chance: they wait for each other.
        together = threading.current_thread() is not threading.main_thread()
        if together:
            self._two.wait(SECONDS)
        with self._lock:
            share = self._both if together else 1.0
            self.now += share * (0.1 + 0.1 * len(chunks))
        if len(chunks) * (1 + together) > self._room:
            raise RuntimeError(self.failure)


@pytest.mark.parametrize(
    ("both", "items", "workers"),
    [
        (0.5, 16, 2),
        (0.8, 16, 2),
        (0.9, 16, 1),  # the second batch's own 0.1 s, and no 5 % are left
        (1.0, 16, 1),
        (0.5, 1, 2),
        (0.96, 1, 1),
    ],
)
def test_two_batches_at_a_time_if_that_is_faster(both: float, items: int, workers: int) -> None:
    """Two halves of a batch at the same time are compared with the whole; of single chunks, two with one by one."""
    assert Overlap(both).workers(items) == workers


def test_one_worker_if_two_batches_do_not_fit() -> None:
    """Any other error is raised."""
    assert Overlap(0.5, room=16).workers(16) == 2
    machine = Overlap(0.5, room=15)
    assert machine.workers(16) == 1
    machine.failure = "an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal"):
        machine.workers(16)


def test_a_cpu_is_not_measured() -> None:
    """Its table is in BENCHMARKS.md; nor is there anything to compare with one worker."""
    for machine, most in ((Overlap(1.0, device=CPU), 2), (Overlap(0.5), 1)):
        assert machine.workers(16, most) == most
        assert machine.batches == []
