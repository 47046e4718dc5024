"""Where to cut a recording: blocks of samples in, chunks that begin and end in pauses out. Pure.

Whisper hears at most 30 s at once, and on a CPU short chunks are cheaper than long ones; cut at pauses into chunks of
12 to 20 s, the words stay the same as with windows of 30 s (BENCHMARKS.md).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Samples, Span
from localwhisper_server.whisper.decoding_rules import LONGEST_SECONDS, most_speech

# Where several languages are to be expected, each chunk is written down in one: shorter ones seldom hold two.
LONGEST_IN_ONE_LANGUAGE_SECONDS = 8.0
# Speech is looked for in stretches of this length, so that a recording of any length is cut in bounded memory.
STRETCH_SECONDS = 30.0
# So much of a stretch that ends in silence is looked at again: a word may begin there, too short to be noticed yet.
EDGE_SECONDS = 1.0

FindSpeech = Callable[[Samples], Sequence[Span]]


class Cutter:
    """Cuts one recording as it arrives: `add` its blocks, and `cut` whenever there is enough, and at the end.

    A recording of up to `longest` seconds with speech in it stays whole, so that its words are heard with all that
    is around them. A longer one is cut in the pauses; `padding` is the sound kept on both sides of speech, in
    seconds; a large one is reduced (see `most_speech`). Pieces come in order, never overlap, and together hold all
    speech. No speech gives no piece.
    """

    def __init__(self, find_speech: FindSpeech, *, padding: float, longest: float = LONGEST_SECONDS) -> None:
        self._find_speech = find_speech
        self._padding = (longest - most_speech(padding, longest)) / 2
        self._longest = longest
        self._held = [np.empty(0, np.float32)]
        self._size = 0
        self._offset, self._begun = 0.0, False

    def add(self, block: Samples) -> bool:
        """Take the next block; returns whether there is enough to `cut` now."""
        self._held.append(block)
        self._size += block.size
        return self._size >= STRETCH_SECONDS * SAMPLE_RATE

    def cut(self, *, end: bool = False) -> list[AudioChunk]:
        """Look for speech in what has arrived, and return the pieces that are complete; at the `end` all of them."""
        held = np.concatenate(self._held)
        seconds, speech = held.size / SAMPLE_RATE, self._find_speech(held)
        if end and speech and not self._begun and held.size <= self._longest * SAMPLE_RATE:
            return [AudioChunk(held, 0.0, tuple(speech))]
        planned = plan(speech, seconds, padding=self._padding, longest=self._longest)
        keep = seconds if end else seconds - max(EDGE_SECONDS, self._padding)
        # The last one may go on in what is still to come, unless it is over and no neighbour could join it.
        if planned and not end and (planned[-1].speech[-1].end > keep or planned[-1].start > seconds - self._longest):
            keep = planned.pop().start
        found = [_taken(held, piece, self._offset) for piece in planned]
        first = round(max([keep, *(piece.end for piece in planned[-1:])]) * SAMPLE_RATE)
        self._held, self._size = [held[first:].copy()], held.size - first
        self._offset, self._begun = self._offset + first / SAMPLE_RATE, True
        return found


@dataclass(frozen=True, slots=True)
class Planned:
    """Where a piece will lie and the speech in it, all in seconds of the recording."""

    start: float
    end: float
    speech: tuple[Span, ...]


def plan(speech: Sequence[Span], duration: float, *, padding: float, longest: float) -> list[Planned]:
    """Join neighbouring speech spans to pieces of at most `longest` seconds, padded where there is room.

    `speech` is in order and free of overlaps, within `duration`. A single span that is too long is cut in equal
    parts. The padding between two pieces is shared, half and half.
    """
    most = most_speech(padding, longest)
    groups: list[list[Span]] = []
    for span in (part for whole in speech for part in _parts(whole, most)):
        if groups and span.end - groups[-1][0].start <= most:
            groups[-1].append(span)
        else:
            groups.append([span])
    planned: list[Planned] = []
    for number, group in enumerate(groups):
        before = groups[number - 1][-1].end if number else 0.0
        after = groups[number + 1][0].start if number + 1 < len(groups) else duration
        middle_before = (before + group[0].start) / 2 if number else 0.0
        middle_after = (group[-1].end + after) / 2 if number + 1 < len(groups) else duration
        start = max(middle_before, group[0].start - padding)
        end = min(middle_after, group[-1].end + padding)
        planned.append(Planned(start, end, tuple(group)))
    return planned


def _parts(span: Span, longest: float) -> list[Span]:
    count = max(1, int(np.ceil(span.seconds / longest - 1e-9)))
    edges = np.linspace(span.start, span.end, count + 1)
    return [Span(float(start), float(end)) for start, end in itertools.pairwise(edges)]


def _taken(held: Samples, planned: Planned, offset: float) -> AudioChunk:
    first, last = round(planned.start * SAMPLE_RATE), round(planned.end * SAMPLE_RATE)
    start = first / SAMPLE_RATE
    speech = tuple(replace(span, start=span.start - start, end=span.end - start) for span in planned.speech)
    # A copy, so that the piece does not keep the whole stretch alive.
    return AudioChunk(held[first:last].copy(), offset + start, speech)
