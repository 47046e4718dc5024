"""The passes of a live session: a stretch of sound, which may still grow, to its text now."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from localwhisper_server.transcription.scheduling import Scheduling
from localwhisper_server.transcription.transcriber import Prepare, RequestSteps, StepRunner
from localwhisper_server.types import AudioChunk, Decoding, Draft, Samples, Segment, Span, Transcript
from localwhisper_server.whisper.chunks import Chunk, ChunkResult

# Reasons for which an answer is rejected that a sentence in the middle often has; the others are loops and inventions.
DRAFTS = frozenset({"logprob", "stops early"})


class LiveDecoder:
    """Decodes for one session, which counts as one open request until it is closed. One pass at a time.

    Raises:
        Busy: the queue is full, or the estimated wait too long.

    """

    def __init__(
        self, scheduler: Scheduling, prepare: Prepare, steps: StepRunner, *, full_window: bool = False
    ) -> None:
        self._scheduler = scheduler
        self._prepare = prepare
        self._steps = steps
        self._full_window = full_window
        self._ticket = scheduler.admit(live=True)

    async def decode(
        self, samples: Samples, speech: Sequence[Span], decoding: Decoding, *, thorough: bool
    ) -> Transcript | Draft | None:
        """Return the text of at most 30 s of `samples`, shape (n,), in which somebody speaks at `speech`.

        An answer that is not accepted is decoded again if `thorough`; otherwise it gives a draft, or None.

        Raises:
            ServerError: the queue is full, or the model failed.

        """
        piece = AudioChunk(samples, 0.0, tuple(speech))
        chunk = await self._steps.run(
            RequestSteps(), lambda: self._prepare(piece, decoding, full_window=self._full_window)
        )
        # To the fair queue each pass is a new message, not the next part of a long recording. Nothing else runs between
        # the two lines, so that the session keeps its place.
        self._ticket.close()
        self._ticket = self._scheduler.admit()
        segments: list[Segment] = []
        result = await self._run(chunk)
        language = result.language
        while result.remainder is not None:
            if result.rejected and not thorough:
                if result.rejected not in DRAFTS or segments:
                    return None
                return Draft(Transcript(decoding.task, None, piece.seconds, result.draft))
            segments += result.segments
            language = language or result.language
            result = await self._run(_in_language(result.remainder, language))
        return Transcript(decoding.task, language or result.language, piece.seconds, (*segments, *result.segments))

    async def _run(self, chunk: Chunk) -> ChunkResult:
        return await asyncio.wrap_future(*self._ticket.submit([chunk], first=True))

    def close(self) -> None:
        """Leave the queue."""
        self._ticket.close()


def _in_language(chunk: Chunk, language: str | None) -> Chunk:
    return replace(chunk, decoding=replace(chunk.decoding, language=language)) if language else chunk
