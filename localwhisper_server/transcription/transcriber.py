"""One upload to one transcript: decode, cut into chunks, submit them to the scheduler, join the results.

Work before the model is done in short steps, which alternate between requests.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from typing import IO, Any, TypeVar

import anyio
import anyio.to_thread

from localwhisper_server.audio import pool
from localwhisper_server.observer import ModelObserver
from localwhisper_server.transcription.scheduling import Scheduling, Ticket
from localwhisper_server.transcription.segmentation import FindSpeech, Segmenter
from localwhisper_server.types import SAMPLE_RATE, BatchLimits, Decoding, Options, Samples, Segment, Transcript
from localwhisper_server.whisper.chunks import Chunk, ChunkResult

Value = TypeVar("Value")
Awaited = TypeVar("Awaited", bound="asyncio.Future[Any]")

# So many recordings are decoded at a time.
DECODERS = 4
DECODER_SECONDS = 0.5
# Threads for the steps of short requests.
SHORT_THREADS = 2
FIRST_STEP_SECONDS = 0.05  # a guess until the first step is measured
# A request counts as short until it has taken more steps than this: enough for a voice message of a minute.
SHORT_STEPS = 4
# Chunks of one request in the pipeline: enough to fill batches, few enough to bound memory.
LOOKAHEAD = 16
# So many chunks are submitted together; the first alone would be a batch of its own.
TOGETHER = 2

# Turns a chunk of audio into features for the model; see `whisper.chunks.Preparer`.
Prepare = Callable[..., Chunk]
Listen = Callable[[Samples], None]


@dataclass(frozen=True, slots=True)
class Decoder:
    """What turns sound into text: `prepare` makes chunks, and `scheduler` has them decoded, in batches of `limits`."""

    prepare: Prepare
    scheduler: Scheduling
    limits: BatchLimits


@dataclass(slots=True)
class RequestSteps:
    """How many steps one request has taken, and whether it is bulk work."""

    bulk: bool = False
    taken: int = 0

    @property
    def short(self) -> bool:
        """Whether it has taken few steps so far. Bulk work counts as long from the start."""
        return not self.bulk and self.taken <= SHORT_STEPS


class StepRunner:
    """Runs short steps of all requests: 16 MB to hash, or speech detection and features for about 30 s of audio.

    Each request has one step at a time, and the first to come is the first to be run, so requests alternate. Short
    requests have threads of their own, so that a message waits for no recording of hours.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._threads = {
            True: ThreadPoolExecutor(SHORT_THREADS, thread_name_prefix="localwhisper-step"),
            False: ThreadPoolExecutor(1, thread_name_prefix="localwhisper-long-step"),
        }
        self._short = 0  # steps of short requests that wait or run
        self._seconds = FIRST_STEP_SECONDS

    def seconds_ahead(self) -> float:
        """Estimate how long the first step of a new request would wait."""
        return self._short * self._seconds / SHORT_THREADS if self._short > SHORT_THREADS else 0.0

    async def run(self, request: RequestSteps, work: Callable[[], Value]) -> Value:
        """Run `work` as the request's next step; return what it returns or raise what it raises."""
        short = request.short
        request.taken += 1

        def timed() -> Value:
            started = self._clock()
            try:
                return work()
            finally:
                # A running mean follows a machine that gets busier or idle.
                self._seconds += (self._clock() - started - self._seconds) / 8

        self._short += short
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads[short], timed)
        finally:
            self._short -= short


def decoder_places() -> Mapping[bool, asyncio.Semaphore]:
    """Return a new semaphore for the recordings of short requests (True) and one for those of others.

    They are apart so that a message waits for no recording of hours.
    """
    return {short: asyncio.Semaphore(DECODERS) for short in (True, False)}


@dataclass(frozen=True, kw_only=True)
class Transcriber:
    """Transcribes uploads with one scheduler. Safe for any number of concurrent calls on one event loop.

    `blocks` decodes an upload, `find_speech` detects speech in it, and `prepare` computes a chunk's features. `steps`
    runs the latter two. A recording may be `max_seconds` long. A decoder that takes more than `decoder_seconds` no
    longer counts among those that work at a time, which `decoders` limit: it has a low priority by then, and a message
    must not wait for it.
    """

    scheduler: Scheduling
    prepare: Prepare
    find_speech: FindSpeech
    blocks: pool.Decode
    steps: StepRunner
    max_seconds: float
    decoder_seconds: float = DECODER_SECONDS
    decoders: Mapping[bool, asyncio.Semaphore] = field(default_factory=decoder_places)
    observer: ModelObserver = field(default_factory=ModelObserver)

    async def transcribe(
        self, source: IO[bytes], options: Options, *, listen: Listen | None = None
    ) -> AsyncGenerator[Segment | Transcript]:
        """Yield each segment as soon as it is known, in order, and the whole transcript last.

        `source` is closed at the end. `listen` is called with each block of samples, in the thread that waits for the
        decoder. Closing the generator removes the chunks that still wait in the queue.

        Raises:
            Busy: the queue is full, or the wait too long.
            UnreadableAudio, InvalidRequest: the upload is not audio, too short or too long.
            EngineFailed: the model failed.

        """
        language, segments = options.decoding.language, list[Segment]()
        with (
            closing(source),
            closing(_Recording(source, options, self, listen)) as recording,
            closing(self.scheduler.admit(bulk=options.bulk)) as ticket,
        ):
            async with aclosing(_Pipeline(recording, ticket, options.decoding).results()) as results:
                async for result in results:
                    language = language or result.language
                    for segment in result.segments:
                        segments.append(segment)
                        yield segment
            transcript = Transcript(options.decoding.task, language, recording.seconds, tuple(segments))
            self.observer.transcribed(transcript.duration)
            yield transcript


class _Recording:
    """One upload, decoded and cut into chunks for the model. Only one task may use it."""

    def __init__(self, source: IO[bytes], options: Options, parts: Transcriber, listen: Listen | None) -> None:
        self.ended = False
        self._listen = listen
        self._options = options
        self._parts = parts
        self._blocks = parts.blocks(source, max_seconds=parts.max_seconds, language=options.decoding.language)
        self._unread: Iterator[Samples] = iter(self._blocks)
        self._segmenter = Segmenter(parts.find_speech, options)
        self._request = RequestSteps(options.bulk)
        self._samples = 0
        self._reader = anyio.CapacityLimiter(1)  # a thread of its own, since it waits for the decoder
        self._reading = threading.Lock()
        self._closed = False

    @property
    def seconds(self) -> float:
        """How much is decoded so far."""
        return self._samples / SAMPLE_RATE

    async def next(self) -> list[Chunk]:
        """Return the chunks of the next 30 s or so, perhaps none; `ended` is set before the last come.

        Raises:
            UnreadableAudio, InvalidRequest, Busy: see `pool.Pool.blocks`.

        """
        await asyncio.shield(_quiet(asyncio.create_task(self._decode())))
        return await self._parts.steps.run(self._request, self._cut)

    def close(self) -> None:
        """Stop decoding: at once, or after the current block if a thread is waiting for it."""
        self._closed = True
        self._release()

    async def _decode(self) -> None:
        """Wait for a place among the decoders, and then for the decoder.

        A caller who leaves keeps the place until the decoder has ended: otherwise callers who come and leave would
        start one process each.
        """
        async with self._parts.decoders[self._request.short]:
            if self._closed:
                return
            reading = _quiet(asyncio.create_task(anyio.to_thread.run_sync(self._read, limiter=self._reader)))
            await asyncio.wait({reading}, timeout=self._parts.decoder_seconds)
        await reading

    def _read(self) -> None:
        """Wait for the decoder until there is enough audio to cut."""
        try:
            with self._reading:
                while not self._closed:
                    block = next(self._unread, None)
                    if block is None:
                        self.ended = True
                        return
                    self._samples += block.size
                    if self._listen is not None:
                        self._listen(block)
                    if self._segmenter.add(block):
                        return
        finally:
            if self._closed:
                self._release()

    def _cut(self) -> list[Chunk]:
        chunks = self._segmenter.cut(end=self.ended)
        decoding, full_window = self._options.decoding, self._options.full_window
        # Nothing for a caller who has left meanwhile.
        return [self._parts.prepare(chunk, decoding, full_window=full_window) for chunk in chunks if not self._closed]

    def _release(self) -> None:
        """Close the decoder, unless a thread is reading from it: that thread closes it afterwards."""
        if self._reading.acquire(blocking=False):
            try:
                self._blocks.close()
            finally:
                self._reading.release()


class _Pipeline:
    """Takes the chunks of one recording through the scheduler: several at a time, with the results in order.

    If the request names no language, the first chunk decides it, and later chunks wait for that. The second chunk does
    not, so that a second worker has work: it detects its own language, and is decoded again if the first chunk's is
    another. If the request names several `languages`, each chunk keeps its own, and none waits.
    """

    def __init__(self, recording: _Recording, ticket: Ticket, decoding: Decoding) -> None:
        self._recording = recording
        self._ticket = ticket
        self._language = decoding.language
        self._several = bool(decoding.languages)
        self._decided: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._preparing: asyncio.Task[list[Chunk]] | None = None
        self._ready: list[Chunk] = []  # not yet submitted
        self._running: deque[asyncio.Task[list[ChunkResult]]] = deque()

    async def results(self) -> AsyncGenerator[ChunkResult]:
        """Yield the results in the order of the recording, and prepare further chunks meanwhile.

        Raises:
            ServerError: decoding, preparation or the model failed.

        """
        try:
            while not self._recording.ended or self._preparing or self._ready or self._running:
                has_room = len(self._ready) + len(self._running) < LOOKAHEAD
                if self._preparing is None and has_room and not self._recording.ended:
                    self._preparing = _quiet(asyncio.create_task(self._recording.next()))
                if self._preparing is None or len(self._ready) >= TOGETHER:
                    self._submit()
                first = self._running[0] if self._running else None
                waiting = {task for task in (self._preparing, first) if task is not None}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if self._preparing is not None and self._preparing.done():
                    found, self._preparing = self._preparing.result(), None
                    self._ready += found
                    if not found:
                        self._submit()  # a long silence: do not wait for a second chunk
                if first is not None and first.done():
                    for result in await self._first_results():
                        yield result
        finally:
            for task in (*self._running, self._preparing):
                if task is not None:
                    task.cancel()

    async def _first_results(self) -> list[ChunkResult]:
        """Return the results of the first chunk in the pipeline, those of its remainders included."""
        results = await self._running.popleft()
        if not self._several:
            self._language = self._language or next((result.language for result in results if result.language), None)
        if not self._decided.done():
            self._decided.set_result(self._language)
        self._submit()
        return results

    def _submit(self) -> None:
        """Submit the chunks that are ready and need not wait for the language."""
        most = LOOKAHEAD - len(self._running)
        if not self._language and not self._several:
            most = 0 if self._running else TOGETHER
        ready, self._ready = self._ready[:most], self._ready[most:]
        if not ready:
            return
        leads = self._several or not (self._running or self._decided.done())
        chunks = [
            replace(
                _in_language(chunk, self._language),
                language_provisional=not leads or (bool(number) and not self._several),
            )
            for number, chunk in enumerate(ready)
        ]
        for chunk, future in zip(chunks, self._ticket.submit(chunks), strict=True):
            self._running.append(_quiet(asyncio.create_task(self._decode(chunk, _wrapped(future)))))

    async def _decode(self, chunk: Chunk, future: "asyncio.Future[ChunkResult]") -> list[ChunkResult]:
        """Return the results of a submitted chunk and its remainders, in the recording's language."""
        result = await future
        language = chunk.decoding.language
        if not language and chunk.language_provisional:
            language = await asyncio.shield(self._decided)
            if language and not result.rejected and result.language != language:
                result = await self._decode_now(_in_language(chunk, language))
        results = [result]
        while result.remainder is not None:
            language = language or result.language
            result = await self._decode_now(_in_language(result.remainder, language))
            results.append(result)
        return results

    async def _decode_now(self, chunk: Chunk) -> ChunkResult:
        """Decode a chunk before the request's later chunks."""
        return await _wrapped(*self._ticket.submit([chunk], first=True))


def _wrapped(future: Future[ChunkResult]) -> "asyncio.Future[ChunkResult]":
    return _quiet(asyncio.wrap_future(future))


def _quiet(future: Awaited) -> Awaited:
    """Return the future; asyncio does not log its failure even if the request has already failed for another reason."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _in_language(chunk: Chunk, language: str | None) -> Chunk:
    return replace(chunk, decoding=replace(chunk.decoding, language=language)) if language else chunk
