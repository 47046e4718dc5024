"""Where to cut a recording: speech spans to chunks of at most one window. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_SECONDS = 30.0  # what Whisper's encoder sees at once


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a recording, in seconds."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


def cut(speech: Sequence[Span], duration: float, *, longest: float = WINDOW_SECONDS) -> list[Span]:
    """Join neighbouring speech spans into chunks no longer than `longest` seconds.

    `speech` is in order and free of overlaps. A recording that fits one window stays whole, so that its words are
    heard with all that is around them. Chunks never overlap; a single span longer than `longest` is cut in pieces
    of that length. No speech gives no chunks.
    """
    if not speech:
        return []
    if duration <= longest:
        return [Span(0.0, duration)]
    chunks: list[Span] = []
    for span in speech:
        if chunks and span.end - chunks[-1].start <= longest:
            chunks[-1] = Span(chunks[-1].start, span.end)
            continue
        start = span.start
        while span.end - start > longest:
            chunks.append(Span(start, start + longest))
            start += longest
        chunks.append(Span(start, span.end))
    return chunks
