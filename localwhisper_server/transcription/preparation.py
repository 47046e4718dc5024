"""From an upload to chunks, in short steps that alternate between requests, so that none delays the others for long.

A step is 16 MB to hash, or speech detection and features for about 30 s of audio. Waiting for the decoder is no step.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from localwhisper_server.audio import pool
from localwhisper_server.transcription.segmentation import Segmenter
from localwhisper_server.types import SAMPLE_RATE, Options, Samples
from localwhisper_server.whisper.chunks import Chunk

Value = TypeVar("Value")

SLOTS = 2
# So many recordings are decoded at a time. A decoder that is slower than DECODER_SECONDS no longer counts: it has a low
# priority by then, and a message must not wait for it.
DECODERS = 4
DECODER_SECONDS = 0.5
FIRST_STEP_SECONDS = 0.05  # a guess until the first step is measured
# One step in so many goes to the request that has waited longest, so that a long recording always makes progress.
OLDEST_EVERY = 4
# A request counts as short until it has taken more steps than this: enough for a voice message of a minute.
SHORT_STEPS = 4

# Turns a chunk of audio into features for the model; see `whisper.chunks.Preparer`.
Prepare = Callable[..., Chunk]


@dataclass(eq=False, slots=True)
class RequestSteps:
    """How many steps one request has taken, and whether it is bulk work."""

    bulk: bool = False
    taken: int = 0

    @property
    def short(self) -> bool:
        """Whether the request has taken few steps so far."""
        return self.taken <= SHORT_STEPS


def next_step(waiting: Sequence[RequestSteps], number: int, *, short_only: bool = False) -> int | None:
    """Return the index of the request that takes the next step; None if none may.

    `waiting` is in order of arrival, and `number` counts the steps from 1. Interactive requests go before bulk ones,
    then the request with the fewest steps goes first. With `short_only`, only short requests may take the step.
    """
    allowed = [at for at, request in enumerate(waiting) if request.short or not short_only]
    if allowed and number % OLDEST_EVERY == 0:
        return allowed[0]
    return min(allowed, key=lambda at: (waiting[at].bulk, waiting[at].taken), default=None)


class StepRunner:
    """Runs the steps of all requests in `slots` threads. Safe for any number of concurrent callers.

    One thread takes only steps of short requests: a long recording never occupies all threads.
    """

    def __init__(self, *, clock: Callable[[], float], slots: int = SLOTS) -> None:
        self._slots = slots
        self._clock = clock
        self._waiting: list[tuple[RequestSteps, Callable[[], Any], Future[Any]]] = []
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="localwhisper-step")
        # Apart for short requests and for long recordings, so that a message waits for no recording of hours.
        self._decoders = {short: asyncio.Semaphore(DECODERS) for short in (True, False)}
        self._lock = threading.Lock()
        self._busy = self._long = 0  # threads at work, and those of them that run a step of a long recording
        self._started = 0
        self._seconds = FIRST_STEP_SECONDS

    def seconds_ahead(self) -> float:
        """Estimate how long the first step of a new request would wait: one step of each waiting request."""
        with self._lock:
            if not self._waiting:
                return 0.0
            return (self._busy + len(self._waiting)) * self._seconds / self._slots

    @contextlib.asynccontextmanager
    async def decoder(self, request: RequestSteps) -> AsyncIterator[None]:
        """Wait until a request may be decoded; its place is free again after the block, or after DECODER_SECONDS."""
        places = self._decoders[request.short]
        await places.acquire()
        late = asyncio.get_running_loop().call_later(DECODER_SECONDS, places.release)
        try:
            yield
        finally:
            if late.when() > asyncio.get_running_loop().time():
                late.cancel()
                places.release()

    async def run(self, request: RequestSteps, work: Callable[[], Value]) -> Value:
        """Run `work` as the request's next step; return what it returns or raise what it raises."""
        outcome: Future[Value] = Future()
        with self._lock:
            self._waiting.append((request, work, outcome))
            if self._busy < self._slots:
                self._busy += 1
                self._threads.submit(self._run_steps)
        return await asyncio.wrap_future(outcome)

    def _run_steps(self) -> None:
        while True:
            with self._lock:
                short_only = self._long >= max(1, self._slots - 1)
                at = next_step([entry[0] for entry in self._waiting], self._started + 1, short_only=short_only)
                if at is None:
                    self._busy -= 1
                    return
                self._started += 1
                request, work, outcome = self._waiting.pop(at)
                request.taken += 1
                long = not request.short
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


class Recording:
    """One upload, decoded and cut into chunks for the model. Only one task may use it; any thread may close it."""

    def __init__(
        self, blocks: pool.Blocks, segmenter: Segmenter, prepare: Prepare, options: Options, steps: StepRunner
    ) -> None:
        self.seconds = 0.0  # decoded so far
        self.ended = False
        self._blocks = blocks
        self._segmenter = segmenter
        self._prepare = prepare
        self._options = options
        self._steps = steps
        self._request = RequestSteps(options.bulk)
        self._unread: Iterator[Samples] = iter(blocks)
        self._samples = 0
        self._decoded = False
        self._reader = anyio.CapacityLimiter(1)  # a thread of its own, since it waits for the decoder
        self._reading = threading.Lock()
        self._closed = False

    async def next(self) -> list[Chunk]:
        """Return the chunks of the next 30 s or so, perhaps none; set `ended` with the last.

        Raises:
            UnreadableAudio, InvalidRequest, Busy: see `pool.Pool.blocks`.

        """
        async with self._steps.decoder(self._request):
            await anyio.to_thread.run_sync(self._read, limiter=self._reader)
        return await self._steps.run(self._request, self._cut)

    def close(self) -> None:
        """Stop decoding: at once, or after the current block if a thread is waiting for it."""
        self._closed = True
        self._release()

    def _read(self) -> None:
        """Wait for the decoder until there is enough audio to cut."""
        try:
            with self._reading:
                for block in self._unread:
                    self._samples += block.size
                    if self._segmenter.add(block) or self._closed:
                        return
                self._decoded = True
        finally:
            if self._closed:
                self._release()

    def _cut(self) -> list[Chunk]:
        found = self._segmenter.cut(end=self._decoded)
        self.seconds, self.ended = self._samples / SAMPLE_RATE, self._decoded
        decoding, full_window = self._options.decoding, self._options.full_window
        return [self._prepare(chunk, decoding, full_window=full_window) for chunk in found]

    def _release(self) -> None:
        """Close the decoder, unless a thread is reading from it: that thread closes it afterwards."""
        if self._reading.acquire(blocking=False):
            try:
                self._blocks.close()
            finally:
                self._reading.release()
