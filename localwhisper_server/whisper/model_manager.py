"""The engine kept alive: out of memory, out of work, and back again. Called from the scheduler's threads.

When the device's memory runs out (a game has taken it), the batch is halved; where one chunk, or the model itself, does
not fit, the model is loaded as `int8_float16`, which takes about half, where the card runs it; if that does not fit
either, callers are told to come back. After a while the whole batch is tried again, and the first precision when there
is no work: loading takes seconds.
"""

import contextlib
import gc
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from localwhisper_server.errors import Busy
from localwhisper_server.observer import NullObserver, Observer
from localwhisper_server.whisper.chunks import Chunk, ChunkResult
from localwhisper_server.whisper.devices import Device
from localwhisper_server.whisper.engine import Engine

logger = logging.getLogger(__name__)

# How long a cramped device is left alone before more is asked of it; a game lasts longer, a second bot does not.
RECOVER_SECONDS = 60.0
# An attempt at the first precision that fails doubles that time, up to this.
LONGEST_PAUSE_SECONDS = 3600.0
# Without work for so long, there is time for a reload.
IDLE_SECONDS = 5.0
# CTranslate2's and CUDA's words for it.
OUT_OF_MEMORY = ("out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "bad_alloc")

Load = Callable[[Device], Engine]


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether an error of CTranslate2 says that memory ran out; it has no class of its own for that."""
    return isinstance(failure, MemoryError) or any(sign in str(failure).lower() for sign in OUT_OF_MEMORY)


class ModelManager:
    """Runs batches on an engine that may come and go.

    `smaller` is the precision for want of memory, if any; `unload_after` the seconds without work after which the
    model leaves the memory, None for never.
    """

    def __init__(
        self,
        load: Load,
        device: Device,
        *,
        clock: Callable[[], float],
        smaller: str | None = None,
        unload_after: float | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._load = load
        self._wanted = device
        self._smaller = smaller
        self._device = device
        self._clock = clock
        self._unload_after = unload_after
        self._observer = observer or NullObserver()
        self._engine: Engine | None = None
        self._most = 0  # chunks at a time; 0 for as many as come
        self._cramped_until = 0.0
        self._pause = RECOVER_SECONDS  # before the first precision is tried again
        # Held while any of the above changes, loading included; never while the engine runs.
        self._lock = threading.RLock()
        self._running = 0  # threads that use the engine
        self.loads = 0

    @property
    def device(self) -> Device:
        """Where and in what precision the model runs now."""
        return self._device

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._engine is not None

    def engine(self) -> Engine:
        """Return the engine, loading the model where it was unloaded, in a smaller precision where memory is short.

        Raises:
            Busy: it does not fit.

        """
        with self._lock:
            if self._engine is None and self._clock() >= self._cramped_until:
                self._device = self._wanted  # it has to be loaded in any case
            while self._engine is None:
                try:
                    self._engine = self._load(self._device)
                except (RuntimeError, MemoryError, ValueError) as failure:
                    if not self._copes(1, failure):
                        raise
                else:
                    self.loads += 1
                    self._observer.model_loaded()
            return self._engine

    def warm_up(self) -> Engine:
        """Load the model, in a smaller precision where memory is short, and let it decode a moment.

        Raises:
            Busy: it does not fit.

        """
        while True:
            try:
                self.engine().warm_up()
                return self.engine()
            except (RuntimeError, MemoryError, ValueError) as failure:
                if not self._copes(1, failure):
                    raise

    def idle(self, seconds: float) -> float | None:
        """Do what is due after so many seconds without work, and return after how many more to ask again.

        The model leaves the memory, if it is to; where it runs in the smaller precision, the first one is tried again.
        """
        with self._lock:
            if self._unload_after is not None and seconds >= self._unload_after:
                self.unload()
                return None
            waits = [] if self._unload_after is None else [self._unload_after - seconds]
            if self._engine is not None and self._device != self._wanted and not self._running:
                if seconds >= IDLE_SECONDS and self._clock() >= self._cramped_until:
                    self._recover()
                waits.append(max(IDLE_SECONDS - seconds, self._cramped_until - self._clock()))
            return min(waits, default=None)

    def unload(self) -> None:
        """Give the model's memory back until the next batch."""
        with self._lock:
            if self._engine is not None and not self._running:
                logger.info("unloading the idle model")
                self._drop()

    def run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Decode a batch, in parts where memory is short.

        Raises:
            Busy: not even one chunk fits.

        """
        if self._most and self._clock() >= self._cramped_until:
            self._most = 0
        results: list[ChunkResult] = []
        while len(results) < len(chunks):
            rest, most = chunks[len(results) :], self._most
            part = rest[:most] if most else rest
            try:
                results += self._run(part)
            except (RuntimeError, MemoryError, ValueError) as failure:
                if not self._copes(len(part), failure):
                    raise
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

    def _copes(self, size: int, failure: BaseException) -> bool:
        """Ask for less after a failure, or raise Busy where there is no less; False if memory was not the matter."""
        with self._lock:
            if is_out_of_memory(failure):
                self._observer.out_of_memory()
                self._ask_for_less(size, failure)
                return True
            if self._device != self._wanted:
                # The precision for want of memory does not run here after all: some cards say so only at work.
                logger.warning("%s does not run here: %s", self._device.compute_type, failure)
                self._smaller = None
                self._device = self._wanted
                self._drop()
                self._give_up(failure)
            return False

    def _ask_for_less(self, size: int, failure: BaseException) -> None:
        self._cramped_until = self._clock() + self._pause
        if size > 1:
            self._most = min(self._most or size, size // 2)
            logger.warning("out of memory with %d chunks; going on with %d at a time", size, self._most)
            return
        if not self._running:  # or its memory would not come free, and the next batch load a second one
            self._drop()
        if self._smaller and self._device.compute_type != self._smaller:
            self._device = replace(self._device, compute_type=self._smaller, reason="out of memory")
            self._most = 0  # what did not fit beside the larger model may fit beside this one
            logger.warning("out of memory; loading the model as %s", self._smaller)
            return
        self._give_up(failure)

    def _give_up(self, failure: BaseException) -> NoReturn:
        # Without its traceback, whose frames would keep the model's memory for as long as somebody keeps the error.
        raise Busy(
            "The device's memory is taken by something else. Try again later.", retry_after=RECOVER_SECONDS
        ) from failure.with_traceback(None)

    def _recover(self) -> None:
        """Load the model in the first precision, or else in the smaller one again: at most one load fails for that."""
        self._drop()
        self._device = self._wanted
        with contextlib.suppress(Busy):  # the next batch loads it
            self.engine()
        if self._device == self._wanted:
            self._pause = RECOVER_SECONDS
        else:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            self._cramped_until = self._clock() + self._pause

    def _drop(self) -> None:
        self._engine = None
        gc.collect()  # the model's memory is freed with its last reference
