"""One transcription from upload to transcript: bytes → samples → chunks → scheduler → segments."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import IO

from localwhisper_server.audio import pool
from localwhisper_server.observer import NullObserver, Observer
from localwhisper_server.transcription import segmentation
from localwhisper_server.transcription.coalescing import Coalescer
from localwhisper_server.transcription.pipeline import ChunkPipeline, watched
from localwhisper_server.transcription.preparation import Prepare, Recording, Steps, digest
from localwhisper_server.transcription.scheduler import Scheduler, Ticket
from localwhisper_server.transcription.step_queue import Account
from localwhisper_server.types import Decoding, Options, Segment, Transcript
from localwhisper_server.whisper.chunks import Chunk, ChunkResult
from localwhisper_server.whisper.decoding_rules import FULL_SECONDS, LONGEST_SECONDS
from localwhisper_server.whisper.vad import find_speech


class Transcriber:
    """Transcribes uploads with one scheduler; safe for any number of concurrent calls on one event loop.

    `blocks` decodes an upload; a server that strangers send to gives that of a `decoder.Pool`. `steps` take the work
    before the model in turn. `kept` finished transcripts are remembered for callers who lost their connection.
    """

    def __init__(
        self,
        scheduler: Scheduler[Chunk, ChunkResult],
        prepare: Prepare,
        *,
        max_seconds: float,
        blocks: pool.Blocks = pool.blocks,
        steps: Steps | None = None,
        kept: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._prepare = prepare
        self._decode = partial(blocks, max_seconds=max_seconds)
        self._observer = observer or NullObserver()
        self._steps = steps or Steps()
        self._sharing: Coalescer[Segment | Transcript] = Coalescer(kept)

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
        account = Account(options.bulk)

        def start() -> AsyncGenerator[Segment | Transcript]:
            nonlocal started
            started = True
            return self._compute(source, options, account)

        try:
            key = (await digest(source, self._steps, account), options)
            async with aclosing(self._sharing.follow(key, start)) as items:
                async for item in items:
                    yield item
        finally:
            if not started:
                source.close()

    async def _compute(
        self, source: IO[bytes], options: Options, account: Account
    ) -> AsyncGenerator[Segment | Transcript]:
        ticket: Ticket[Chunk, ChunkResult] | None = None
        decoding = self._decode(source, language=options.decoding.language)
        recording = Recording(decoding, _cutter(options), options, self._prepare)
        try:
            ticket = self._scheduler.admit(bulk=options.bulk)
            language, found = options.decoding.language, list[Segment]()
            async with aclosing(self._run(ticket, recording, account, options.decoding)) as results:
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

    async def _run(
        self, ticket: Ticket[Chunk, ChunkResult], recording: Recording, account: Account, hints: Decoding
    ) -> AsyncGenerator[ChunkResult]:
        """Yield the results of each chunk in order, several on their way at a time, preparing more meanwhile."""
        hearing, ready = ChunkPipeline(ticket, hints.language, several=bool(hints.languages)), deque[Chunk]()
        preparing: asyncio.Task[list[Chunk]] | None = None
        try:
            while not recording.ended or ready or len(hearing):
                if preparing is None and not ready and not recording.ended:
                    preparing = watched(asyncio.create_task(recording.next(self._steps, account)))
                if ready and hearing.has_room:
                    hearing.add(ready.popleft())
                elif preparing is not None and hearing.has_room:
                    await asyncio.wait({preparing, *hearing.first}, return_when=asyncio.FIRST_COMPLETED)
                    if preparing.done():
                        ready.extend(preparing.result())
                        preparing = None
                        if not ready:  # what waits for company need not wait for the end of a silence
                            hearing.hand_in()
                else:
                    for result in await hearing.next():
                        yield result
        finally:
            hearing.cancel()
            if preparing is not None:
                preparing.cancel()


def _cutter(options: Options) -> segmentation.Cutter:
    voice = options.voice
    longest = segmentation.LONGEST_IN_ONE_LANGUAGE_SECONDS if options.decoding.languages else LONGEST_SECONDS
    longest = FULL_SECONDS if options.full_window else longest
    return segmentation.Cutter(
        lambda samples: find_speech(samples, voice, longest=longest),
        padding=voice.prefix_padding_ms / 1000,
        longest=longest,
    )
