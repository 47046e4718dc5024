"""One transcription from upload to transcript: bytes → samples → chunks → scheduler → segments."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import IO, TypeVar

import anyio
import anyio.to_thread

from localwhisper_server import audio, chunks
from localwhisper_server.engine import Chunk, ChunkResult, find_speech
from localwhisper_server.options import Decoding, Options
from localwhisper_server.scheduler import Scheduler, Ticket
from localwhisper_server.transcript import Segment, Transcript

Value = TypeVar("Value")

# Chunks of one request that wait in the scheduler at a time: enough to fill batches, few enough to bound memory.
LOOKAHEAD = 16


class Service:
    """Transcribes uploads with one scheduler; safe for any number of concurrent calls on one event loop."""

    def __init__(self, scheduler: Scheduler[Chunk, ChunkResult], *, max_seconds: float, decoders: int = 2) -> None:
        self._scheduler = scheduler
        self._max_seconds = max_seconds
        self._decoders = anyio.CapacityLimiter(decoders)

    async def transcribe(self, source: IO[bytes], options: Options) -> AsyncGenerator[Segment | Transcript]:
        """Yield segments as they are found, in the order they were spoken, and the whole transcript last.

        `source` is read before the first item and not after. Closing the generator takes the queued chunks with it.

        Raises:
            Busy: the queue is full.
            UnreadableAudio, InvalidRequest: the upload is not audio, too short or too long.
            EngineFailed: the model failed.

        """
        ticket = self._scheduler.admit()
        try:
            samples = await self._in_thread(lambda: audio.decode(source, max_seconds=self._max_seconds))
            speech = await self._in_thread(lambda: find_speech(samples, options.voice))
            duration = samples.size / audio.SAMPLE_RATE
            spans = chunks.cut(speech, duration)
            language, found = options.decoding.language, list[Segment]()
            waiting = deque(_slice(samples, span, options.decoding) for span in spans)
            async for result in _run(ticket, waiting):
                language = language or result.language
                for segment in result.segments:
                    found.append(segment)
                    yield segment
            yield Transcript(options.decoding.task, language, duration, tuple(found))
        finally:
            ticket.close()

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await anyio.to_thread.run_sync(work, limiter=self._decoders)


async def _run(ticket: Ticket[Chunk, ChunkResult], waiting: deque[Chunk]) -> AsyncGenerator[ChunkResult]:
    """Yield the result of each chunk in order, several queued at a time.

    The first chunk goes alone where the language is not known: it decides for the rest of the recording.
    """
    pending: deque[asyncio.Future[ChunkResult]] = deque()
    language = waiting[0].decoding.language if waiting else None
    while waiting or pending:
        while waiting and len(pending) < (LOOKAHEAD if language else 1):
            pending.append(asyncio.wrap_future(ticket.submit(_spoken(waiting.popleft(), language))))
        result = await pending.popleft()
        language = language or result.language
        yield result
        while result.rest is not None:
            result = await asyncio.wrap_future(ticket.submit(_spoken(result.rest, language)))
            yield result


def _slice(samples: audio.Samples, span: chunks.Span, decoding: Decoding) -> Chunk:
    first, last = round(span.start * audio.SAMPLE_RATE), round(span.end * audio.SAMPLE_RATE)
    return Chunk(samples[first:last], span.start, decoding)


def _spoken(chunk: Chunk, language: str | None) -> Chunk:
    return replace(chunk, decoding=replace(chunk.decoding, language=language)) if language else chunk
