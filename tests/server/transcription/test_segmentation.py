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
    Cutter,
    most_speech,
    plan,
)
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Span

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


def pieces(blocks: Iterable[Samples], find_speech: FindSpeech, *, padding: float) -> Iterator[AudioChunk]:
    """Cut a whole recording, a look at a time."""
    cutter = Cutter(find_speech, padding=padding)
    for block in blocks:
        if cutter.add(block):
            yield from cutter.cut()
    yield from cutter.cut(end=True)


def _spans(pairs: list[tuple[int, int]]) -> list[Span]:
    spans, at = [], 0
    for gap, length in pairs:
        spans.append(Span((at + gap) / 1000, (at + gap + length) / 1000))
        at += gap + length
    return spans


def _sound(speech: Sequence[Span], seconds: float) -> Samples:
    """Return samples that count up where somebody speaks and are 0 where nobody does, so that each can be told."""
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


class Ear:
    """Finds what is not 0, as a detector would; remembers how much it was ever given at once."""

    def __init__(self) -> None:
        self.most, self.calls = 0.0, 0

    def __call__(self, samples: Samples) -> list[Span]:
        self.most, self.calls = max(self.most, samples.size * SAMPLE), self.calls + 1
        edges = np.flatnonzero(np.diff(np.concatenate([[0], samples != 0, [0]]).astype(np.int8)))
        return [Span(first * SAMPLE, last * SAMPLE) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def _heard(found: Sequence[AudioChunk]) -> list[np.ndarray[Any, Any]]:
    return [piece.samples[piece.samples > 0] for piece in found]


def _check(found: Sequence[AudioChunk], samples: Samples, longest: float = LONGEST_SECONDS) -> None:
    """Every spoken sample once and in order, each piece where it says it is, none too long."""
    assert np.array_equal(np.concatenate([np.empty(0), *_heard(found)]), samples[samples > 0])
    for piece in found:
        first = round(piece.offset * SAMPLE_RATE)
        assert piece.offset * SAMPLE_RATE == pytest.approx(first, abs=1e-3)
        assert np.array_equal(piece.samples, samples[first : first + piece.samples.size])
        assert 0 < piece.seconds <= longest + 2 * SAMPLE
        assert piece.speech
        assert piece.speech[0].start >= -SAMPLE
        assert piece.speech[-1].end <= piece.seconds + SAMPLE
        spoken = sum(span.seconds for span in piece.speech)
        assert spoken == pytest.approx(np.count_nonzero(piece.samples) * SAMPLE, abs=4 * SAMPLE)
    for before, after in pairwise(found):
        assert before.offset + before.seconds <= after.offset + EPSILON


@given(SPEECH, st.floats(0, 60), PADDING, st.sampled_from([5.0, LONGEST_SECONDS]))
def test_a_plan_holds_all_speech_in_order_without_overlap(
    pairs: list[tuple[int, int]], tail: float, padding: float, longest: float
) -> None:
    """Whatever was said is in a piece, no moment is in two, none is longer than it may be or outside the recording."""
    speech = _spans(pairs)
    duration = (speech[-1].end if speech else 0.0) + tail
    room = (longest - most_speech(padding, longest)) / 2
    planned = plan(speech, duration, padding=room, longest=longest)
    assert all(0 < piece.end - piece.start <= longest + EPSILON for piece in planned)
    assert all(piece.start >= 0 and piece.end <= duration + EPSILON for piece in planned)
    assert all(before.end <= after.start + EPSILON for before, after in pairwise(planned))
    inside = [span for piece in planned for span in piece.speech]
    assert sum(span.seconds for span in inside) == pytest.approx(sum(span.seconds for span in speech))
    assert all(before.end <= after.start + EPSILON for before, after in pairwise(inside))
    assert all(
        piece.start - EPSILON <= span.start and span.end <= piece.end + EPSILON
        for piece in planned
        for span in piece.speech
    )


@given(SPEECH, PADDING)
def test_silence_is_not_paid_for(pairs: list[tuple[int, int]], padding: float) -> None:
    """A piece begins and ends at most the padding away from speech."""
    speech = _spans(pairs)
    room = (LONGEST_SECONDS - most_speech(padding)) / 2
    for piece in plan(speech, 1e4, padding=room, longest=LONGEST_SECONDS):
        assert piece.speech[0].start - piece.start <= room + EPSILON
        assert piece.end - piece.speech[-1].end <= room + EPSILON


def test_neighbours_are_joined_while_they_fit() -> None:
    """Few, long pieces, cut where nobody speaks, in the middle of a short pause."""
    speech = [Span(1, 4), Span(5, 10), Span(10.4, 20), Span(40, 41)]
    planned = plan(speech, 50.0, padding=0.5, longest=15.0)
    assert [(piece.start, piece.end) for piece in planned] == [(0.5, 10.2), (10.2, 20.5), (39.5, 41.5)]
    assert [piece.speech for piece in planned] == [tuple(speech[:2]), (speech[2],), (speech[3],)]


def test_who_never_pauses_is_cut_in_equal_parts() -> None:
    """No other place is better."""
    planned = plan([Span(5, 33)], 40.0, padding=0.5, longest=15.0)
    assert [(piece.start, piece.end) for piece in planned] == [(4.5, 19.0), (19.0, 33.5)]


@pytest.mark.parametrize(("padding", "most"), [(0.0, 12.0), (0.3, 11.4), (3.0, 6.0), (7.5, 6.0), (10.0, 6.0)])
def test_padding_leaves_room_for_speech(padding: float, most: float) -> None:
    """The form lets through 10 s on both sides, which would be more than the piece."""
    assert most_speech(padding) == most


@pytest.mark.parametrize("seconds", [0.0, 3.0, 14.0, 59.0, 61.0, 400.0])
def test_no_speech_gives_no_piece(seconds: float) -> None:
    """At any length."""
    assert list(pieces(_even(_sound([], seconds)), Ear(), padding=0.3)) == []


@pytest.mark.parametrize("seconds", [0.5, 5.0, LONGEST_SECONDS])
def test_a_short_recording_stays_whole(seconds: float) -> None:
    """Its words are heard with everything around them."""
    speech = (Span(0.1, 0.2), Span(0.3, 0.4))
    samples = _sound(speech, seconds)
    (piece,) = pieces(_even(samples), Ear(), padding=0.0)
    assert np.array_equal(piece.samples, samples)
    assert piece.offset == 0.0
    assert [(span.start, span.end) for span in piece.speech] == [(0.1, 0.2), (0.3, 0.4)]


@given(
    SPEECH,
    st.floats(0, 30),
    PADDING,
    st.lists(st.integers(0, 10**7), max_size=10),
)
def test_every_spoken_sample_is_in_one_piece(
    pairs: list[tuple[int, int]], tail: float, padding: float, cuts: list[int]
) -> None:
    """In a recording of any length, however it arrives: in order, where it was, no piece too long."""
    speech = _spans(pairs)
    samples = _sound(speech, (speech[-1].end if speech else 0.0) + tail)
    found = list(pieces(_blocks(samples, cuts), Ear(), padding=padding))
    _check(found, samples)


@given(
    SPEECH.map(_spans).filter(lambda speech: not speech or speech[-1].end < STRETCH_SECONDS - 1),
    st.lists(st.integers(0, 10**6), max_size=10),
)
def test_blocks_leave_no_trace(speech: list[Span], cuts: list[int]) -> None:
    """A recording shorter than a stretch is cut in the same places however it arrives."""
    samples = _sound(speech, (speech[-1].end if speech else 0.0) + 0.5)
    once = list(pieces([samples], Ear(), padding=0.3))
    again = list(pieces(_blocks(samples, cuts), Ear(), padding=0.3))
    assert [(piece.offset, piece.speech) for piece in again] == [(piece.offset, piece.speech) for piece in once]
    assert all(np.array_equal(one.samples, other.samples) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize("start", [50.0, 59.0, 59.9, 60.0, 60.1, 61.0])
@pytest.mark.parametrize("padding", [0.0, 0.3])
def test_a_word_across_the_end_of_a_stretch_stays_whole(start: float, padding: float) -> None:
    """It waits for what is still to come, and keeps its padding."""
    span = Span(start, start + 4.0)
    samples = _sound([span], 70.0)
    (piece,) = pieces(_even(samples), Ear(), padding=padding)
    _check([piece], samples)
    assert piece.offset == pytest.approx(start - padding, abs=2 * SAMPLE)
    assert piece.seconds == pytest.approx(4.0 + 2 * padding, abs=4 * SAMPLE)


def test_a_word_that_only_just_begins_is_looked_at_again() -> None:
    """A detector takes a quarter of a second to believe that somebody speaks; what it did not hear is not lost."""
    ear, samples = Ear(), _sound([Span(59.8, 62.0)], 70.0)

    def slow(heard: Samples) -> list[Span]:
        return [span for span in ear(heard) if span.seconds >= 0.25]

    (piece,) = pieces(_even(samples), slow, padding=0.0)
    _check([piece], samples)
    assert EDGE_SECONDS > 0.25


def test_speech_without_an_end_is_cut_across_stretches() -> None:
    """Five minutes without a pause: nothing lost where two stretches meet."""
    samples = _sound([Span(0.0, 300.0)], 300.0)
    found = list(pieces(_even(samples, 7.3), Ear(), padding=0.3))
    _check(found, samples)
    assert len(found) <= 300 / 7.5


@pytest.mark.parametrize(
    "speech",
    [
        [Span(0.0, 5.0)],  # and then nothing more, for ten minutes
        [Span(1.0, 5.0), Span(595.0, 599.0)],
        [Span(at, at + 6.0) for at in range(0, 590, 7)],
        [Span(0.0, 600.0)],
    ],
    ids=["once", "twice", "always", "endless"],
)
@pytest.mark.parametrize("padding", [0.0, 0.3, 10.0])
def test_memory_is_bounded(speech: list[Span], padding: float) -> None:
    """Of ten minutes never more than a stretch and a block is looked at, and little of it twice."""
    ear, samples = Ear(), _sound(speech, 600.0)
    arrived = 0.0

    def counted() -> Iterator[Samples]:
        nonlocal arrived
        for block in _even(samples):
            arrived += block.size * SAMPLE
            yield block

    for piece in pieces(counted(), ear, padding=padding):
        assert arrived - piece.offset <= 2 * STRETCH_SECONDS
        assert piece.samples.base is None  # the stretch it was cut from can go
    assert ear.most <= STRETCH_SECONDS + BLOCK + EPSILON
    assert ear.calls <= 600 / (STRETCH_SECONDS - LONGEST_SECONDS - BLOCK) + 2


def test_pieces_come_before_the_recording_ends() -> None:
    """An hour is answered from its first minute on."""
    arrived = 0

    def endless() -> Iterator[Samples]:
        nonlocal arrived
        while True:
            arrived += 1
            yield _sound([Span(0.5, 2.5)], BLOCK)

    piece = next(pieces(endless(), Ear(), padding=0.3))
    assert piece.offset == pytest.approx(0.2, abs=SAMPLE)
    assert arrived * BLOCK <= STRETCH_SECONDS + BLOCK
