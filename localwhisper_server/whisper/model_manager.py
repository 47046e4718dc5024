"""Loading and unloading a model, how large a batch pays, and what happens when memory runs out.

Called from the scheduler's threads.

When the device's memory runs out, for instance because of a game, other models of this server are unloaded, and then
batches are halved. If a single chunk or the model itself does not fit, the model is loaded as `int8_float16`, which
takes about half the memory, if the card can run it. If that does not fit either, callers get Busy. After a while whole
batches are tried again, and the first precision when the server is idle, since loading takes seconds.
"""

import gc
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from localwhisper_server.errors import Busy
from localwhisper_server.observer import ModelObserver
from localwhisper_server.types import BatchLimits
from localwhisper_server.whisper.chunks import FULL_FRAMES, MESSAGE_SECONDS, Chunk, ChunkResult, window_frames
from localwhisper_server.whisper.devices import Device, is_out_of_memory
from localwhisper_server.whisper.engine import Engine
from localwhisper_server.whisper.model_memory import ModelMemory, Resident

logger = logging.getLogger(__name__)

# How long after memory ran out more is tried again.
RETRY_SECONDS = 60.0
# Each failed attempt at the first precision doubles that time, up to this.
MAX_RETRY_SECONDS = 3600.0
# After this long without work there is time to load the model.
IDLE_SECONDS = 5.0

# The sizes of a batch that are measured, in this order.
CPU_SIZES = (2, 8)
GPU_SIZES = (4, 16, 32, 64, 128)
# A larger batch has to save at least this part of the time per chunk.
MIN_GAIN = 0.05
# How long a batch, and one request's share of it, may take: a short message may have to wait for it. Measured with one
# worker, which has the memory's whole bandwidth; two at the same time take half as long again.
BATCH_SECONDS = 2.5
SHARE_SECONDS = 0.5
# The share holds at least one message, however slow the machine.
MIN_SHARE_FRAMES = window_frames(MESSAGE_SECONDS)


class ModelManager:
    """Runs batches on an engine, which it loads and unloads with `load`.

    `smaller` is the precision to fall back to when memory runs out, if any. `unload_after` is the idle time in seconds
    after which the model is unloaded, None for never. `memory` unloads other models for this one, which it knows as
    `resident`. `engine`, `warm_up` and `run` raise Busy if not even one chunk fits into memory.
    """

    def __init__(
        self,
        load: Callable[[Device], Engine],
        device: Device,
        *,
        clock: Callable[[], float],
        smaller: str | None = None,
        unload_after: float | None = None,
        memory: ModelMemory | None = None,
        resident: Resident | None = None,
        observer: ModelObserver | None = None,
    ) -> None:
        self._load = load
        self._wanted = device
        self._smaller = smaller
        self._device = device
        self._clock = clock
        self._unload_after = unload_after
        self._memory = memory or ModelMemory(clock=clock)
        self._resident = resident
        self._observer = observer or ModelObserver()
        self._engine: Engine | None = None
        self._unloaded: tuple[Device, Engine] | None = None  # an engine without its weights
        self._batch_size = 0  # 0 for any
        self._retry_at = 0.0  # when to try a whole batch or the first precision again
        self._retry_seconds = RETRY_SECONDS
        # Held while any of the above changes, loading included; never while the engine runs.
        self._lock = threading.RLock()
        self._running = 0  # threads that use the engine
        self._recovering = False  # whether it only tries the first precision again

    @property
    def device(self) -> Device:
        """Where and in what precision the model runs now."""
        return self._device

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._engine is not None

    @property
    def running(self) -> int:
        """How many batches the engine is decoding."""
        return self._running

    def engine(self) -> Engine:
        """Return the engine; load the model first if necessary, in the smaller precision if memory is short."""
        with self._lock:
            if self._engine is None and self._clock() >= self._retry_at:
                self._device = self._wanted  # it has to be loaded in any case
            while self._engine is None:
                try:
                    with self._memory.loading(self._resident):
                        self._engine = self._new_engine()
                except (RuntimeError, MemoryError, ValueError) as failure:
                    self._reduce(1, failure)
                else:
                    self._observer.model_loaded()
            return self._engine

    def _new_engine(self) -> Engine:
        """Load the weights of the engine that was unloaded, if it is of this device and precision; else all of it."""
        (device, engine), self._unloaded = self._unloaded or (None, None), None
        if engine is None or device != self._device:
            return self._load(self._device)
        engine.reload()
        return engine

    def warm_up(self) -> Engine:
        """Load the model, in the smaller precision if memory is short, and run it once."""
        while True:
            try:
                self.engine().warm_up()
                return self.engine()
            except (RuntimeError, MemoryError, ValueError) as failure:
                self._reduce(1, failure)

    def measure_limits(self, message: Chunk, *, items: int) -> BatchLimits:
        """Return how large a batch pays here; `items` above 0 is the number of chunks, as set by the user.

        Decodes several copies of `message` at once, and then more, while they fit into memory, save time per chunk, and
        take no longer than a batch may: no table lists every card and CPU. The speed is measured in any case. If memory
        ran out, no batch gets more frames than fitted.
        """
        sizes: tuple[int, ...] = CPU_SIZES if self._device.name == "cpu" else GPU_SIZES
        sizes = (min(items, sizes[0]),) if items else sizes
        best, seconds, fits = 1, float("inf"), True
        for size in sizes:
            started = self._clock()
            try:
                self.engine().run([message] * size)
            except (RuntimeError, MemoryError) as failure:
                if not is_out_of_memory(failure):
                    raise
                fits = False
                break
            took = self._clock() - started
            if took / size > seconds * (1 - MIN_GAIN):
                break
            best, seconds = size, took / size
            if took > BATCH_SECONDS and sizes == GPU_SIZES:
                break
        best = items or best
        frames_per_second = message.frames / max(seconds, 1e-6)
        frames = max(FULL_FRAMES, best * message.frames, int(BATCH_SECONDS * frames_per_second) if fits else 0)
        share = max(MIN_SHARE_FRAMES, int(SHARE_SECONDS * frames_per_second))
        return BatchLimits(items=best, frames=frames, share=share, end=frames)

    def measure_workers(self, message: Chunk, limits: BatchLimits, *, most: int) -> int:
        """Return how many batches to decode at a time: `most`, or on a card 1 if that many save no time.

        Decodes copies of `message`, as many as a batch holds: in one batch, and divided into `most` at the same time.
        """
        if self._device.name == "cpu" or most == 1:
            return most
        engine = self.engine()
        share = [message] * max(1, limits.items // most)

        def together() -> float:
            started = self._clock()
            with ThreadPoolExecutor(most) as threads:
                list(threads.map(engine.run, [share] * most))
            return self._clock() - started

        try:
            together()  # the first time, each worker allocates memory
            divided = together()
            started = self._clock()
            for first in range(0, most * len(share), limits.items):
                engine.run((share * most)[first : first + limits.items])
        except (RuntimeError, MemoryError) as failure:
            if not is_out_of_memory(failure):
                raise
            return 1
        return most if divided < (self._clock() - started) * (1 - MIN_GAIN) else 1

    def idle(self, seconds: float) -> float | None:
        """Unload the model, or try its first precision again, if that is due after so many seconds without work.

        Returns after how many seconds to call again, None for not before there was work.
        """
        with self._lock:
            if self._unload_after is not None and seconds >= self._unload_after:
                if self.unload():
                    logger.info("unloaded the idle model")
                return None
            waits = [] if self._unload_after is None else [self._unload_after - seconds]
            if self._engine is not None and self._device != self._wanted and not self._running:
                if seconds >= IDLE_SECONDS and self._clock() >= self._retry_at:
                    self._recover()
                waits.append(max(IDLE_SECONDS - seconds, self._retry_at - self._clock()))
            return min(waits, default=None)

    def unload(self) -> bool:
        """Free the model's memory until the next batch; False if it is in use. Does not wait for that to change."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._engine is None or self._running:
                return False
            if self._engine.unload():
                self._unloaded, self._engine = (self._device, self._engine), None
            else:
                self._drop()
            return True
        finally:
            self._lock.release()

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Decode a batch, in parts if memory is short."""
        if self._batch_size and self._clock() >= self._retry_at:
            self._batch_size = 0
        results: list[ChunkResult] = []
        while len(results) < len(chunks):
            waiting, size = chunks[len(results) :], self._batch_size
            part = waiting[:size] if size else waiting
            try:
                results += self._run(part)
            except (RuntimeError, MemoryError, ValueError) as failure:
                self._reduce(len(part), failure)
        return results

    def _run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        with self._lock:
            engine = self.engine()
            self._running += 1
        try:
            return engine.run(chunks)
        finally:
            with self._lock:
                self._running -= 1

    def _reduce(self, batch_size: int, failure: Exception) -> None:
        """Use less memory after a failure with so many chunks.

        Raises:
            Busy: it cannot use less.
            RuntimeError, ValueError: the failure has another cause.

        """
        with self._lock:
            if is_out_of_memory(failure):
                self._observer.out_of_memory()
                self._use_less_memory(batch_size, failure)
            elif self._device != self._wanted:
                # Some cards list a precision and fail only when they run it.
                logger.warning("%s does not run here: %s", self._device.compute_type, failure)
                self._smaller = None
                self._device = self._wanted
                self._drop()
                raise _busy(failure)
            else:
                raise failure

    def _use_less_memory(self, batch_size: int, failure: Exception) -> None:
        if batch_size == 1 and not self._running:  # a running batch would keep the old model in memory beside the next
            self._drop()
        if self._memory.make_room(self._resident, wait=self._engine is None and not self._recovering):
            return
        self._retry_at = self._clock() + self._retry_seconds
        if batch_size > 1:
            self._batch_size = min(self._batch_size or batch_size, batch_size // 2)
            logger.warning("out of memory with %d chunks; going on with %d at a time", batch_size, self._batch_size)
            return
        if not self._smaller or self._device.compute_type == self._smaller:
            raise _busy(failure)
        self._device = replace(self._device, compute_type=self._smaller, reason="out of memory")
        self._batch_size = 0  # the smaller model leaves more room for a batch
        logger.warning("out of memory; loading the model as %s", self._smaller)

    def _recover(self) -> None:
        """Load the model in the first precision, or else in the smaller one again: at most one load fails."""
        self._drop()
        self._device = self._wanted
        self._recovering = True
        try:
            self.engine()
        except Busy:
            pass  # the next batch loads it
        finally:
            self._recovering = False
        if self._device == self._wanted:
            self._retry_seconds = RETRY_SECONDS
        else:
            self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)
            self._retry_at = self._clock() + self._retry_seconds

    def _drop(self) -> None:
        self._engine = None
        gc.collect()  # the model's memory is freed with its last reference


def _busy(failure: Exception) -> Busy:
    busy = Busy("The device's memory is taken by something else. Try again later.", retry_after=RETRY_SECONDS)
    # Without its traceback, whose frames would keep the model in memory as long as the error is referenced.
    busy.__cause__ = failure.with_traceback(None)
    return busy
