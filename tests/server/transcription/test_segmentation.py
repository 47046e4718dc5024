from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.transcription.segmentation import (
    EDGE_SECONDS,
    LONGEST_SECONDS,
    STRETCH_SECONDS,
    Segmenter,
    most_speech,
    plan,
)
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Options, Span, Voice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from localwhisper_server.transcription.segmentation import FindSpeech
    from localwhisper_server.types import Samples

EPSILON = 1e-6
SAMPLE = 1 / SAMPLE_RATE
# Gaps and lengths of speech in turn, in milliseconds, as a detector gives them.
SPEECH = st.lists(st.tuples(st.integers(100, 20_000), st.integers(300, 40_000)), max_size=12)
PADDING = st.sampled_from([0.0, 0.3, 2.0, 7.5, 10.0])
BLOCK = 3.0


def chunks(blocks: Iterable[Samples], find_speech: FindSpeech, *, padding: float) -> Iterator[AudioChunk]:
    """Cut a whole recording, a stretch at a time."""
    segmenter = Segmenter(find_speech, Options(voice=Voice(prefix_padding_ms=round(padding * 1000))))
    for block in blocks:
        if segmenter.add(block):
            yield from segmenter.cut()
    yield from segmenter.cut(end=True)


def _spans(pairs: list[tuple[int, int]]) -> list[Span]:
    spans, at = [], 0
    for gap, length in pairs:
        spans.append(Span((at + gap) / 1000, (at + gap + length) / 1000))
        at += gap + length
    return spans


def _sound(speech: Sequence[Span], seconds: float) -> Samples:
    """Return samples that count up in speech and are 0 elsewhere, so that each spoken sample is unique."""
    samples = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    for span in speech:
        first, last = round(span.start * SAMPLE_RATE), round(span.end * SAMPLE_RATE)
        samples[first:last] = np.arange(first, last, dtype=np.float32)[: samples.size - first] + 1
    return samples


def _blocks(samples: Samples, cuts: Sequence[int]) -> Iterator[Samples]:
    edges = [0, *sorted(cut % (samples.size + 1) for cut in cuts), samples.size]
    for first, last in pairwise(edges):
        yield samples[first:last]


def _even(samples: Samples, seconds: float = BLOCK) -> Iterator[Samples]:
    size = round(seconds * SAMPLE_RATE)
    for first in range(0, samples.size, size):
        yield samples[first : first + size]


class Detector:
    """Finds what is not 0; remembers the most seconds that it was given at once."""

    def __init__(self) -> None:
        self.most, self.calls = 0.0, 0

    def __call__(self, samples: Samples, voice: Voice, *, longest: float) -> list[Span]:
        self.most, self.calls = max(self.most, samples.size * SAMPLE), self.calls + 1
        edges = np.flatnonzero(np.diff(np.concatenate([[0], samples != 0, [0]]).astype(np.int8)))
        return [Span(first * SAMPLE, last * SAMPLE) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def _spoken(found: Sequence[AudioChunk]) -> list[np.ndarray[Any, Any]]:
    return [chunk.samples[chunk.samples > 0] for chunk in found]


def _check(found: Sequence[AudioChunk], samples: Samples, longest: float = LONGEST_SECONDS) -> None:
    """Check that every spoken sample is there once, in order and in its place, and that no chunk is too long."""
    assert np.array_equal(np.concatenate([np.empty(0), *_spoken(found)]), samples[samples > 0])
    for chunk in found:
        first = round(chunk.offset * SAMPLE_RATE)
        assert chunk.offset * SAMPLE_RATE == pytest.approx(first, abs=1e-3)
        assert np.array_equal(chunk.samples, samples[first : first + chunk.samples.size])
        assert 0 < chunk.seconds <= longest + 2 * SAMPLE
        assert chunk.speech
        assert chunk.speech[0].start >= -SAMPLE
        assert chunk.speech[-1].end <= chunk.seconds + SAMPLE
        spoken = sum(span.seconds for span in chunk.speech)
        assert spoken == pytest.approx(np.count_nonzero(chunk.samples) * SAMPLE, abs=4 * SAMPLE)
    for before, after in pairwise(found):
        assert before.offset + before.seconds <= after.offset + EPSILON


@given(SPEECH, st.floats(0, 60), PADDING, st.sampled_from([5.0, LONGEST_SECONDS]))
def test_a_plan_holds_all_speech_in_order_without_overlap(
    pairs: list[tuple[int, int]], tail: float, padding: float, longest: float
) -> None:
    """All speech is in a chunk. Chunks do not overlap, are not too long, and lie within the recording."""
    speech = _spans(pairs)
    duration = (speech[-1].end if speech else 0.0) + tail
    room = (longest - most_speech(padding, longest)) / 2
    planned = plan(speech, duration, padding=room, longest=longest)
    assert all(0 < chunk.end - chunk.start <= longest + EPSILON for chunk in planned)
    assert all(chunk.start >= 0 and chunk.end <= duration + EPSILON for chunk in planned)
    assert all(before.end <= after.start + EPSILON for before, after in pairwise(planned))
    inside = [span for chunk in planned for span in chunk.speech]
    assert sum(span.seconds for span in inside) == pytest.approx(sum(span.seconds for span in speech))
    assert all(before.end <= after.start + EPSILON for before, after in pairwise(inside))
    assert all(
        chunk.start - EPSILON <= span.start and span.end <= chunk.end + EPSILON
        for chunk in planned
        for span in chunk.speech
    )


@given(SPEECH, PADDING)
def test_a_chunk_has_little_silence_around_its_speech(pairs: list[tuple[int, int]], padding: float) -> None:
    """It begins and ends at most the padding away from speech."""
    speech = _spans(pairs)
    room = (LONGEST_SECONDS - most_speech(padding)) / 2
    for chunk in plan(speech, 1e4, padding=room, longest=LONGEST_SECONDS):
        assert chunk.speech[0].start - chunk.start <= room + EPSILON
        assert chunk.end - chunk.speech[-1].end <= room + EPSILON


def test_neighbours_are_joined_while_they_fit() -> None:
    """Few, long chunks, cut in the pauses; in a short pause, in its middle."""
    speech = [Span(1, 4), Span(5, 10), Span(10.4, 20), Span(40, 41)]
    planned = plan(speech, 50.0, padding=0.5, longest=15.0)
    assert [(chunk.start, chunk.end) for chunk in planned] == [(0.5, 10.2), (10.2, 20.5), (39.5, 41.5)]
    assert [chunk.speech for chunk in planned] == [tuple(speech[:2]), (speech[2],), (speech[3],)]


def test_speech_without_a_pause_is_cut_in_equal_parts() -> None:
    """No other place would be better."""
    planned = plan([Span(5, 33)], 40.0, padding=0.5, longest=15.0)
    assert [(chunk.start, chunk.end) for chunk in planned] == [(4.5, 19.0), (19.0, 33.5)]


@pytest.mark.parametrize("seconds", [0.0, 3.0, 14.0, 59.0, 61.0, 400.0])
def test_no_speech_gives_no_chunk(seconds: float) -> None:
    """At any length."""
    assert list(chunks(_even(_sound([], seconds)), Detector(), padding=0.3)) == []


@pytest.mark.parametrize("seconds", [0.5, 5.0, LONGEST_SECONDS])
def test_a_short_recording_stays_whole(seconds: float) -> None:
    """The model has all the sound around its words."""
    speech = (Span(0.1, 0.2), Span(0.3, 0.4))
    samples = _sound(speech, seconds)
    (chunk,) = chunks(_even(samples), Detector(), padding=0.0)
    assert np.array_equal(chunk.samples, samples)
    assert chunk.offset == 0.0
    assert [(span.start, span.end) for span in chunk.speech] == [(0.1, 0.2), (0.3, 0.4)]


def test_a_long_silence_at_the_beginning_is_left_out() -> None:
    """Or the model might date the first words to its beginning."""
    samples = _sound((Span(20.0, 24.0),), 25.0)
    (chunk,) = chunks(_even(samples), Detector(), padding=0.3)
    assert chunk.offset == pytest.approx(19.7, abs=0.01)


@given(
    SPEECH,
    st.floats(0, 30),
    PADDING,
    st.lists(st.integers(0, 10**7), max_size=10),
)
def test_every_spoken_sample_is_in_one_chunk(
    pairs: list[tuple[int, int]], tail: float, padding: float, cuts: list[int]
) -> None:
    """In a recording of any length, in blocks of any length."""
    speech = _spans(pairs)
    samples = _sound(speech, (speech[-1].end if speech else 0.0) + tail)
    found = list(chunks(_blocks(samples, cuts), Detector(), padding=padding))
    _check(found, samples)


@given(
    SPEECH.map(_spans).filter(lambda speech: not speech or speech[-1].end < STRETCH_SECONDS - 1),
    st.lists(st.integers(0, 10**6), max_size=10),
)
def test_blocks_do_not_change_the_chunks(speech: list[Span], cuts: list[int]) -> None:
    """A recording shorter than a stretch is cut in the same places, whatever its blocks."""
    samples = _sound(speech, (speech[-1].end if speech else 0.0) + 0.5)
    once = list(chunks([samples], Detector(), padding=0.3))
    again = list(chunks(_blocks(samples, cuts), Detector(), padding=0.3))
    assert [(chunk.offset, chunk.speech) for chunk in again] == [(chunk.offset, chunk.speech) for chunk in once]
    assert all(np.array_equal(one.samples, other.samples) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize("start", [50.0, 59.0, 59.9, 60.0, 60.1, 61.0])
@pytest.mark.parametrize("padding", [0.0, 0.3])
def test_a_word_across_the_end_of_a_stretch_stays_whole(start: float, padding: float) -> None:
    """It waits for the next stretch, and keeps its padding."""
    span = Span(start, start + 4.0)
    samples = _sound([span], 70.0)
    (chunk,) = chunks(_even(samples), Detector(), padding=padding)
    _check([chunk], samples)
    assert chunk.offset == pytest.approx(start - padding, abs=2 * SAMPLE)
    assert chunk.seconds == pytest.approx(4.0 + 2 * padding, abs=4 * SAMPLE)


def test_the_end_of_a_stretch_is_searched_again() -> None:
    """A detector needs a quarter of a second to notice a word; one that begins at the very end is not lost."""
    detector, samples = Detector(), _sound([Span(59.8, 62.0)], 70.0)

    def slow(stretch: Samples, voice: Voice, *, longest: float) -> list[Span]:
        return [span for span in detector(stretch, voice, longest=longest) if span.seconds >= 0.25]

    (chunk,) = chunks(_even(samples), slow, padding=0.0)
    _check([chunk], samples)
    assert EDGE_SECONDS > 0.25


@pytest.mark.parametrize(
    "speech",
    [
        [Span(0.0, 5.0)],  # then silence for ten minutes
        [Span(1.0, 5.0), Span(595.0, 599.0)],
        [Span(at, at + 6.0) for at in range(0, 590, 7)],
        [Span(0.0, 600.0)],
    ],
    ids=["once", "twice", "always", "endless"],
)
@pytest.mark.parametrize("padding", [0.0, 0.3, 10.0])
def test_memory_is_bounded(speech: list[Span], padding: float) -> None:
    """Of ten minutes, the detector gets a stretch and a block at most at a time, and little of it twice."""
    detector, samples = Detector(), _sound(speech, 600.0)
    arrived = 0.0

    def counted() -> Iterator[Samples]:
        nonlocal arrived
        for block in _even(samples):
            arrived += block.size * SAMPLE
            yield block

    found = []
    for chunk in chunks(counted(), detector, padding=padding):
        found.append(chunk)
        assert arrived - chunk.offset <= 2 * STRETCH_SECONDS
        assert chunk.samples.base is None  # it does not keep the stretch in memory
    _check(found, samples)
    assert detector.most <= STRETCH_SECONDS + BLOCK + EPSILON
    assert detector.calls <= 2 * 600 / LONGEST_SECONDS + 2
