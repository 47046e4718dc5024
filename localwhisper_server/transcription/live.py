"""The passes of a live session: a stretch of sound, which may still grow, to its text now."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from localwhisper_server.transcription.scheduling import Scheduling
from localwhisper_server.transcription.transcriber import Prepare, RequestSteps, StepRunner
from localwhisper_server.types import AudioChunk, Decoding, Draft, Samples, Segment, Span, Transcript
from localwhisper_server.whisper.chunks import Chunk, ChunkResult

# Reasons for which an answer is rejected that a sentence in the middle often has; the others are loops and inventions.
DRAFTS = frozenset({"logprob", "stops early"})


@dataclass(frozen=True, slots=True)
class _Begun:
    """A pass as far as it is decoded: of which sound, with which options, and what the last decoding gave."""

    piece: AudioChunk
    decoding: Decoding
    result: ChunkResult
    before: tuple[Segment, ...] = ()
    _language: str | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments so far."""
        return (*self.before, *self.result.segments)

    @property
    def language(self) -> str | None:
        """The language of the first accepted answer."""
        return self._language or self.result.language

    def then(self, result: ChunkResult) -> "_Begun":
        """Return the pass after its next decoding."""
        return _Begun(self.piece, self.decoding, result, self.segments, self.language)

    def is_of(self, samples: Samples, speech: Sequence[Span], decoding: Decoding) -> bool:
        """Return whether it is of this sound, with these options."""
        same = (self.piece.speech, self.decoding) == (tuple(speech), decoding)
        return same and np.array_equal(self.piece.samples, samples)


class LiveDecoder:
    """Decodes for one session, which counts as one open request until it is closed.

    One pass at a time: before the next one begins, the one that is not done must be cancelled.

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
        self._rejected: _Begun | None = None  # the last pass, if its answer was not accepted

    async def decode(
        self, samples: Samples, speech: Sequence[Span], decoding: Decoding, *, thorough: bool
    ) -> Transcript | Draft | None:
        """Return the text of at most 30 s of `samples`, shape (n,), in which somebody speaks at `speech`.

        An answer that is not accepted is decoded again if `thorough`; otherwise it gives a draft, or None. A thorough
        pass of the same sound as the last, which was rejected, begins with the second decoding.

        Raises:
            ServerError: the queue is full, or the model failed.

        """
        begun, self._rejected = self._rejected, None
        if begun is not None and begun.is_of(samples, speech, decoding):
            self._take_place()
        else:
            piece = AudioChunk(samples, 0.0, tuple(speech))
            chunk = await self._steps.run(
                RequestSteps(), lambda: self._prepare(piece, decoding, full_window=self._full_window)
            )
            self._take_place()
            begun = _Begun(piece, decoding, await self._run(chunk))
        while (remainder := begun.result.remainder) is not None:
            if begun.result.rejected and not thorough:
                self._rejected = begun
                if begun.result.rejected not in DRAFTS or begun.segments:
                    return None
                return Draft(Transcript(decoding.task, None, begun.piece.seconds, begun.result.draft))
            begun = begun.then(await self._run(_in_language(remainder, begun.language)))
        return Transcript(decoding.task, begun.language, begun.piece.seconds, begun.segments)

    def _take_place(self) -> None:
        """Queue as a new message, which each pass is to the fair queue: not the next part of a long recording."""
        # Nothing else runs between the two lines, so that the session keeps its place.
        self._ticket.close()
        self._ticket = self._scheduler.admit()

    async def _run(self, chunk: Chunk) -> ChunkResult:
        return await asyncio.wrap_future(*self._ticket.submit([chunk], first=True))

    def close(self) -> None:
        """Leave the queue."""
        self._ticket.close()


def _in_language(chunk: Chunk, language: str | None) -> Chunk:
    return replace(chunk, decoding=replace(chunk.decoding, language=language)) if language else chunk
