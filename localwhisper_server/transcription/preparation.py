"""From bytes to chunks, in short steps that all requests take in turn; waiting for a decoder takes none."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, Protocol, TypeVar

import anyio
import anyio.to_thread

from localwhisper_server import types
from localwhisper_server.audio import pool
from localwhisper_server.transcription import segmentation
from localwhisper_server.transcription.step_queue import Account, StepQueue
from localwhisper_server.types import Decoding, Options
from localwhisper_server.whisper.chunks import Chunk

Value = TypeVar("Value")

SLOTS = 2
HASHED_BYTES = 16 << 20
FIRST_STEP_SECONDS = 0.05  # before any was measured


class Prepare(Protocol):
    """Turns sound into a chunk for the model; see `Engine.prepare`."""

    def __call__(self, piece: types.AudioChunk, decoding: Decoding, *, full_window: bool = False) -> Chunk:
        """Return the chunk."""


class Steps:
    """Runs the steps of all requests, so many at a time, each in a thread; safe for any number of callers.

    One thread is kept for requests that are short so far: long ones leave it, and its core, to them and to the model.
    """

    def __init__(self, slots: int = SLOTS, clock: Callable[[], float] = time.perf_counter) -> None:
        self._slots = slots
        self._clock = clock
        self._queue: StepQueue[tuple[Callable[[], Any], Future[Any]]] = StepQueue()
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="localwhisper-step")
        self._lock = threading.Lock()
        self._busy = self._long = 0  # threads at work, and those of them that are at a long recording
        self._seconds = FIRST_STEP_SECONDS

    def seconds_ahead(self) -> float:
        """Estimate how long the step of a request that came now would wait: for one step of each that is waiting."""
        with self._lock:
            if not self._queue:
                return 0.0
            return (self._busy + len(self._queue)) * self._seconds / self._slots

    async def run(self, account: Account, work: Callable[[], Value]) -> Value:
        """Run `work` when it is the account's turn, and return what it returns or raise what it raises."""
        outcome: Future[Value] = Future()
        with self._lock:
            self._queue.put(account, (work, outcome))
            if self._busy < self._slots:
                self._busy += 1
                self._threads.submit(self._take_turns)
        return await asyncio.wrap_future(outcome)

    def _take_turns(self) -> None:
        while True:
            with self._lock:
                taken = self._queue.take(short=self._long >= max(1, self._slots - 1))
                if taken is None:
                    self._busy -= 1
                    return
                account, (work, outcome) = taken
                long = not account.short
                self._long += long
            started = self._clock()
            if outcome.set_running_or_notify_cancel():
                try:
                    outcome.set_result(work())
                except BaseException as failure:  # noqa: BLE001 - the caller raises it
                    outcome.set_exception(failure)
            with self._lock:
                self._long -= long
                # A running mean follows a machine that gets busier or idle.
                self._seconds += (self._clock() - started - self._seconds) / 8


async def digest(source: IO[bytes], steps: Steps, account: Account) -> bytes:
    """Return a fingerprint of the bytes of `source`, read from its start."""
    sha, more = hashlib.sha256(), True
    source.seek(0)

    def read_on() -> bool:
        data = source.read(HASHED_BYTES)
        sha.update(data)
        return len(data) == HASHED_BYTES

    while more:
        more = await steps.run(account, read_on)
    return sha.digest()


class Recording:
    """An upload on its way to chunks; counts its seconds. Used by one task at a time; `close` by any."""

    def __init__(
        self,
        blocks: pool.Decoding,
        cutter: segmentation.Cutter,
        options: Options,
        prepare: Prepare,
    ) -> None:
        self.seconds = 0.0  # as far as it was decoded
        self.ended = False
        self._options = options
        self._prepare = prepare
        self._cutter = cutter
        self._blocks = blocks
        self._unread: Iterator[types.Samples] = iter(blocks)
        self._samples = 0
        self._decoded = False
        self._reader = anyio.CapacityLimiter(1)  # a thread of its own, since it waits for the decoder
        self._reading = threading.Lock()
        self._closed = False

    async def next(self, steps: Steps, account: Account) -> list[Chunk]:
        """Decode as far as a step goes, and return the chunks in it, which may be none; sets `ended` at the end."""
        await anyio.to_thread.run_sync(self._read, limiter=self._reader)
        return await steps.run(account, self._cut)

    def close(self) -> None:
        """Stop decoding, from any thread: at once if no thread is reading, else at the end of the block in hand."""
        self._closed = True
        self._release()

    def _read(self) -> None:
        """Wait for the decoder until there is enough to cut."""
        try:
            with self._reading:
                for block in self._unread:
                    self._samples += block.size
                    if self._cutter.add(block) or self._closed:
                        return
                self._decoded = True
        finally:
            if self._closed:
                self._release()

    def _cut(self) -> list[Chunk]:
        found = self._cutter.cut(end=self._decoded)
        self.seconds, self.ended = self._samples / types.SAMPLE_RATE, self._decoded
        return [self._prepare(piece, self._options.decoding, full_window=self._options.full_window) for piece in found]

    def _release(self) -> None:
        """Let go of the decoder, unless a thread is using it: that one will."""
        if self._reading.acquire(blocking=False):
            try:
                self._blocks.close()
            finally:
                self._reading.release()
