"""One transcription from upload to transcript: bytes → samples → chunks → scheduler → segments."""

import hashlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from typing import IO, Protocol, TypeVar

import anyio
import anyio.to_thread

from localwhisper_server import chunks, decoder
from localwhisper_server.batch import Chunk, ChunkResult
from localwhisper_server.engine import find_speech
from localwhisper_server.hearing import Hearing
from localwhisper_server.observe import Nobody, Observer
from localwhisper_server.options import Decoding, Options
from localwhisper_server.scheduler import Scheduler, Ticket
from localwhisper_server.sharing import Sharing
from localwhisper_server.transcript import Segment, Transcript
from localwhisper_server.window import FULL_SECONDS

Value = TypeVar("Value")


class Prepare(Protocol):
    """Turns sound into a chunk for the model; see `Engine.prepare`."""

    def __call__(self, piece: chunks.Piece, decoding: Decoding, *, full: bool = False) -> Chunk:
        """Return the chunk."""


class Service:
    """Transcribes uploads with one scheduler; safe for any number of concurrent calls on one event loop.

    `blocks` decodes an upload; a server that strangers send to gives that of a `decoder.Pool`. `kept` finished
    transcripts are remembered for callers who lost their connection.
    """

    def __init__(
        self,
        scheduler: Scheduler[Chunk, ChunkResult],
        prepare: Prepare,
        *,
        max_seconds: float,
        blocks: decoder.Blocks = decoder.blocks,
        decoders: int = 2,
        kept: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._prepare = prepare
        self._decode = partial(blocks, max_seconds=max_seconds)
        self._observer = observer or Nobody()
        self._decoders = anyio.CapacityLimiter(decoders)
        self._sharing: Sharing[Segment | Transcript] = Sharing(kept)

    async def transcribe(self, source: IO[bytes], options: Options) -> AsyncGenerator[Segment | Transcript]:
        """Yield segments as they are found, in the order they were spoken, and the whole transcript last.

        `source` is the service's from now on: it is closed when nobody needs it any more. The same bytes with the
        same options are computed once for all who ask meanwhile. Closing the generator takes the queued chunks with
        it, unless somebody else follows.

        Raises:
            Busy: the queue is full, or the wait too long.
            UnreadableAudio, InvalidRequest: the upload is not audio, too short or too long.
            EngineFailed: the model failed.

        """
        started = False

        def start() -> AsyncGenerator[Segment | Transcript]:
            nonlocal started
            started = True
            return self._compute(source, options)

        try:
            key = (await self._in_thread(lambda: _digest(source)), options)
            async with aclosing(self._sharing.follow(key, start)) as items:
                async for item in items:
                    yield item
        finally:
            if not started:
                source.close()

    async def _compute(self, source: IO[bytes], options: Options) -> AsyncGenerator[Segment | Transcript]:
        ticket: Ticket[Chunk, ChunkResult] | None = None
        recording = _Recording(self._decode(source, language=options.decoding.language), options, self._prepare)
        try:
            ticket = self._scheduler.admit(bulk=options.bulk)
            language, found = options.decoding.language, list[Segment]()
            async with aclosing(self._run(ticket, recording)) as results:
                async for result in results:
                    language = language or result.language
                    for segment in result.segments:
                        found.append(segment)
                        yield segment
            self._observer.transcribed(recording.seconds)
            yield Transcript(options.decoding.task, language, recording.seconds, tuple(found))
        finally:
            if ticket is not None:
                ticket.close()
            recording.close()
            source.close()

    async def _run(self, ticket: Ticket[Chunk, ChunkResult], recording: "_Recording") -> AsyncGenerator[ChunkResult]:
        """Yield the results of each chunk in order, several on their way at a time, decoding on while they are."""
        hearing = Hearing(ticket, recording.language, several=recording.several)
        more = True
        try:
            while more or len(hearing):
                while more and hearing.has_room:
                    chunk = await self._in_thread(recording.next_chunk)
                    more = chunk is not None
                    if chunk is not None:
                        hearing.add(chunk)
                if len(hearing):
                    for result in await hearing.next():
                        yield result
        finally:
            hearing.cancel()

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await anyio.to_thread.run_sync(work, limiter=self._decoders)


class _Recording:
    """An upload being decoded: gives its chunks one by one and counts its seconds. Used from one thread at a time."""

    def __init__(self, blocks: decoder.Decoding, options: Options, prepare: Prepare) -> None:
        self._samples = 0
        self.language = options.decoding.language
        self.several = bool(options.decoding.languages)
        self._options = options
        self._prepare = prepare
        self._blocks = blocks
        self._at_work = threading.Lock()
        self._closed = False
        voice = options.voice
        longest = chunks.LONGEST_IN_ONE_LANGUAGE_SECONDS if self.several else chunks.LONGEST_SECONDS
        longest = FULL_SECONDS if options.full_window else longest
        self._pieces = chunks.pieces(
            self._counted(),
            lambda samples: find_speech(samples, voice, longest=longest),
            padding=voice.prefix_padding_ms / 1000,
            longest=longest,
        )

    @property
    def seconds(self) -> float:
        """Its length as far as it was decoded."""
        return self._samples / chunks.SAMPLE_RATE

    def next_chunk(self) -> Chunk | None:
        """Decode as far as the next chunk; None at the end."""
        try:
            with self._at_work:
                piece = next(self._pieces, None)
        finally:
            if self._closed:
                self._release()
        if piece is None:
            return None
        return self._prepare(piece, self._options.decoding, full=self._options.full_window)

    def close(self) -> None:
        """Stop decoding, from any thread: at once where nobody is at it, else at the end of the block in hand."""
        self._closed = True
        self._release()

    def _release(self) -> None:
        """Let go of the decoder, unless a thread is using it: that will."""
        if self._at_work.acquire(blocking=False):
            try:
                self._blocks.close()
            finally:
                self._at_work.release()

    def _counted(self) -> Iterator[chunks.Samples]:
        for block in self._blocks:
            self._samples += block.size
            yield block
            if self._closed:
                return


def _digest(source: IO[bytes]) -> bytes:
    source.seek(0)
    digest = hashlib.sha256()
    while part := source.read(1 << 20):
        digest.update(part)
    return digest.digest()
