"""Where to cut a recording: blocks of samples in, chunks that begin and end in pauses out. Pure.

Whisper decodes at most 30 s at once. Shorter chunks cost less on a CPU, but a cut within a sentence costs words on both
sides of it (BENCHMARKS.md), so chunks are long and end in long pauses.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Options, Samples, Span, Voice
from localwhisper_server.whisper.chunks import FULL_SECONDS, LONGEST_SECONDS, most_speech

# Each chunk is transcribed in one language. With several languages to expect, chunks are shorter: they seldom hold two.
LONGEST_IN_ONE_LANGUAGE_SECONDS = 8.0
# Speech is detected in stretches of this length, so that memory is bounded for a recording of any length.
STRETCH_SECONDS = 30.0
# The end of a stretch that ends in silence is searched again with the next: a word may begin there, too short to be
# detected yet.
EDGE_SECONDS = 1.0
# After a longer silence, the model may date the first words to its beginning. After 5 s it did not, after 20 s it did.
LONGEST_LEAD_SECONDS = 8.0


class FindSpeech(Protocol):
    """Voice activity detection; see `whisper.chunks.find_speech`."""

    def __call__(self, samples: Samples, voice: Voice, *, longest: float) -> Sequence[Span]:
        """Return where somebody speaks, in seconds, in order; spans fit into chunks of `longest` seconds."""


class Segmenter:
    """Cuts one recording as it is decoded: `add` each block, and `cut` when there is enough, and once at the end.

    A chunk is at most 28 s long, 8 s if several languages are expected, and 30 s with the full window. A recording that
    fits into one chunk stays whole, so that the model has all the sound around its words, unless it begins with a long
    silence. A longer one is cut in the pauses. Each chunk keeps the padding of `voice` on both sides of its speech, or
    less where that leaves no room (see `most_speech`). Chunks come in order, never overlap, and together hold all
    speech. Without speech there is none.
    """

    def __init__(self, find_speech: FindSpeech, options: Options) -> None:
        self._find_speech = find_speech
        self._voice = options.voice
        longest = LONGEST_IN_ONE_LANGUAGE_SECONDS if options.decoding.languages else LONGEST_SECONDS
        self._longest = FULL_SECONDS if options.full_window else longest
        self._padding = (self._longest - most_speech(self._voice.prefix_padding_ms / 1000, self._longest)) / 2
        self._held = [np.empty(0, np.float32)]
        self._size = 0
        self._offset, self._begun = 0.0, False

    def add(self, block: Samples) -> bool:
        """Take the next block; return whether there is enough to `cut`."""
        self._held.append(block)
        self._size += block.size
        return self._size >= STRETCH_SECONDS * SAMPLE_RATE

    def cut(self, *, end: bool = False) -> list[AudioChunk]:
        """Detect speech in what has arrived, and return the chunks that are complete; at the `end` all of them."""
        held = np.concatenate(self._held)
        seconds, speech = held.size / SAMPLE_RATE, self._find_speech(held, self._voice, longest=self._longest)
        fits = not self._begun and held.size <= self._longest * SAMPLE_RATE
        if end and speech and fits and speech[0].start <= LONGEST_LEAD_SECONDS:
            return [AudioChunk(held, 0.0, tuple(speech))]
        planned = plan(speech, seconds, padding=self._padding, longest=self._longest)
        keep = seconds if end else seconds - max(EDGE_SECONDS, self._padding)
        # The last chunk waits for the next block if its speech may go on there, or if more speech may still fit in.
        if planned and not end and (planned[-1].speech[-1].end > keep or planned[-1].start > seconds - self._longest):
            keep = planned.pop().start
        chunks = [_chunk(held, bounds, self._offset) for bounds in planned]
        first = round(max([keep, *(bounds.end for bounds in planned[-1:])]) * SAMPLE_RATE)
        self._held, self._size = [held[first:].copy()], held.size - first
        self._offset, self._begun = self._offset + first / SAMPLE_RATE, True
        return chunks


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a chunk will lie, and the speech in it, in seconds of the stretch."""

    start: float
    end: float
    speech: tuple[Span, ...]


def plan(speech: Sequence[Span], duration: float, *, padding: float, longest: float) -> list[Bounds]:
    """Join neighbouring spans of speech to chunks of at most `longest` seconds, padded where there is room.

    `speech` is in order, without overlaps, within `duration` seconds. A chunk ends at the longest pause of those that
    make it at least half full: a sentence more likely ends there than at the last pause that fits. A single span that
    is too long is cut in equal parts. Two chunks share the pause between them, half each.
    """
    most = most_speech(padding, longest)
    groups: list[list[Span]] = []
    waiting = [part for whole in speech for part in _parts(whole, most)]
    while waiting:
        fitting = max(1, sum(span.end - waiting[0].start <= most for span in waiting))
        count = fitting if fitting == len(waiting) else _longest_pause(waiting[: fitting + 1], most / 2)
        groups.append(waiting[:count])
        waiting = waiting[count:]
    # The middle of each pause between two groups, and both ends of the recording.
    pauses = [(before[-1].end + after[0].start) / 2 for before, after in itertools.pairwise(groups)]
    edges = itertools.pairwise([0.0, *pauses, duration])
    return [
        Bounds(max(first, group[0].start - padding), min(last, group[-1].end + padding), tuple(group))
        for group, (first, last) in zip(groups, edges, strict=False)
    ]


def _longest_pause(spans: Sequence[Span], least: float) -> int:
    """Return how many spans come before the longest pause; a pause in the first `least` seconds only if it is the last.

    Of pauses that are equally long to a hundredth of a second, the last.
    """
    last = len(spans) - 1
    late = [count for count in range(1, last) if spans[count - 1].end - spans[0].start >= least]
    return max([*late, last], key=lambda count: (round(spans[count].start - spans[count - 1].end, 2), count))


def _parts(span: Span, longest: float) -> list[Span]:
    count = max(1, int(np.ceil(span.seconds / longest - 1e-9)))
    edges = np.linspace(span.start, span.end, count + 1)
    return [Span(float(start), float(end)) for start, end in itertools.pairwise(edges)]


def _chunk(held: Samples, bounds: Bounds, offset: float) -> AudioChunk:
    first, last = round(bounds.start * SAMPLE_RATE), round(bounds.end * SAMPLE_RATE)
    start = first / SAMPLE_RATE
    speech = tuple(replace(span, start=span.start - start, end=span.end - start) for span in bounds.speech)
    # A copy, so that the chunk does not keep the whole stretch in memory.
    return AudioChunk(held[first:last].copy(), offset + start, speech)
