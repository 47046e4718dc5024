from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localwhisper_server.chunks import (
    LONGEST_SECONDS,
    SAMPLE_RATE,
    STRETCH_SECONDS,
    Piece,
    Planned,
    Samples,
    Span,
    pieces,
    plan,
)

EPSILON = 1e-6
SAMPLE = 1 / SAMPLE_RATE
# Gaps and lengths in turn, in milliseconds as a detector gives them.
SPEECH = st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 90_000)), max_size=20)
PADDING = st.sampled_from([0.0, 0.3, 2.0, 7.5, 10.0])  # ten seconds is the most that the form lets through
LONGEST = st.sampled_from([5.0, LONGEST_SECONDS, 30.0])


def _spans(pairs: list[tuple[int, int]]) -> list[Span]:
    spans, at = [], 0
    for gap, length in pairs:
        spans.append(Span((at + gap) / 1000, (at + gap + length) / 1000))
        at += gap + length
    return spans


def _covered(span: Span, planned: list[Planned]) -> float:
    return sum(max(0.0, min(span.end, piece.end) - max(span.start, piece.start)) for piece in planned)


@given(SPEECH, st.floats(0, 60), PADDING, LONGEST)
def test_a_plan_holds_all_speech_in_order_without_overlap(
    pairs: list[tuple[int, int]], tail: float, padding: float, longest: float
) -> None:
    """Whatever was said is in a piece, no moment in two, none longer than it may be or outside the recording."""
    speech = _spans(pairs)
    duration = (speech[-1].end if speech else 0.0) + tail
    planned = plan(speech, duration, padding=padding, longest=longest)
    assert all(0 < piece.end - piece.start <= longest + EPSILON for piece in planned)
    assert all(piece.start >= 0 and piece.end <= duration + EPSILON for piece in planned)
    assert all(before.end <= after.start + EPSILON for before, after in pairwise(planned))
    assert all(_covered(span, planned) == pytest.approx(span.seconds, abs=1e-3) for span in speech)


@given(SPEECH, PADDING)
def test_each_piece_knows_its_speech(pairs: list[tuple[int, int]], padding: float) -> None:
    """Inside it, and together all there is."""
    speech = _spans(pairs)
    planned = plan(speech, 4000.0, padding=padding, longest=LONGEST_SECONDS)
    assert all(piece.start <= span.start + EPSILON for piece in planned for span in piece.speech)
    assert all(span.end <= piece.end + EPSILON for piece in planned for span in piece.speech)
    said = sum(span.seconds for piece in planned for span in piece.speech)
    assert said == pytest.approx(sum(span.seconds for span in speech))


def test_padding_is_kept_where_there_is_room_and_shared_where_there_is_not() -> None:
    """On both sides; two pieces close together meet in the middle of their pause."""
    planned = plan([Span(0.1, 10), Span(10.2, 20), Span(30, 31)], 31.1, padding=0.3, longest=12)
    assert [(piece.start, piece.end) for piece in planned] == [
        (0.0, pytest.approx(10.1)),
        (pytest.approx(10.1), 20.3),
        (29.7, 31.1),
    ]


def test_neighbours_are_joined_while_they_fit() -> None:
    """Few, long pieces, cut where nobody speaks."""
    planned = plan([Span(0, 4), Span(5, 9), Span(10, 14), Span(15, 16)], 20.0, padding=0.0, longest=10)
    assert [(piece.start, piece.end) for piece in planned] == [(0, 9), (10, 16)]


def test_one_long_span_is_cut_in_equal_parts() -> None:
    """Somebody who never pauses."""
    planned = plan([Span(5, 35)], 40.0, padding=0.0, longest=12)
    assert [(piece.start, piece.end) for piece in planned] == [(5, 15), (15, 25), (25, 35)]


# As a recording arrives. Speech is where the samples are not zero; each is worth its own number.


def _recording(pairs: list[tuple[int, int]], tail: float) -> tuple[Samples, list[Span]]:
    speech = _spans(pairs)
    duration = (speech[-1].end if speech else 0.0) + tail
    samples = np.zeros(round(duration * SAMPLE_RATE), np.float32)
    for span in speech:
        samples[round(span.start * SAMPLE_RATE) : round(span.end * SAMPLE_RATE)] = 1.0
    return samples, speech


class Detector:
    """Finds speech as it is marked, blind to the last quarter of a second as real ones are; counts its work."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, samples: Samples) -> list[Span]:
        """Return the runs of ones."""
        self.asked.append(samples.size / SAMPLE_RATE)
        edges = np.flatnonzero(np.diff(np.concatenate([[0.0], samples, [0.0]]))) / SAMPLE_RATE
        spans = [Span(float(start), float(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
        return [span for span in spans if span.seconds >= 0.25 or span.end < samples.size / SAMPLE_RATE]


def _blocks(samples: Samples, seconds: float) -> list[Samples]:
    size = round(seconds * SAMPLE_RATE)
    return [samples[at : at + size] for at in range(0, samples.size, size)]


def _cut(samples: Samples, block: float, padding: float = 0.3) -> tuple[list[Piece], Detector]:
    detector = Detector()
    return list(pieces(_blocks(samples, block), detector, padding=padding)), detector


SHORT_SPEECH = st.lists(st.tuples(st.integers(100, 30_000), st.integers(300, 40_000)), max_size=5)


@settings(max_examples=25)
@given(SHORT_SPEECH, st.floats(0.1, 70), st.sampled_from([3.0, 7.0, 61.0]), st.sampled_from([0.0, 0.3, 10.0]))
def test_no_speech_is_lost_on_the_way(pairs: list[tuple[int, int]], tail: float, block: float, padding: float) -> None:
    """However the blocks fall: in order, without overlap, every sample of speech in exactly one piece."""
    samples, _speech = _recording(pairs, tail)
    found, _ = _cut(samples, block, padding)
    assert all(before.offset + before.seconds <= after.offset + EPSILON for before, after in pairwise(found))
    assert sum(float(piece.samples.sum()) for piece in found) == pytest.approx(float(samples.sum()), abs=2 * len(found))
    for piece in found:
        assert 0 < piece.seconds <= LONGEST_SECONDS + 1e-3
        first = round(piece.offset * SAMPLE_RATE)
        assert np.array_equal(piece.samples, samples[first : first + piece.samples.size])
        assert all(-SAMPLE <= span.start < span.end <= piece.seconds + SAMPLE for span in piece.speech)


@pytest.mark.parametrize("seconds", [600, 1800])
@pytest.mark.parametrize("speech", [(0, 0), (1, 5), (50, 70)], ids=["none", "at the start", "over a border"])
def test_a_long_silence_costs_no_memory_and_little_time(seconds: int, speech: tuple[int, int]) -> None:
    """Each stretch is looked at about once, however little was said before."""
    samples = np.zeros(seconds * SAMPLE_RATE, np.float32)
    samples[speech[0] * SAMPLE_RATE : speech[1] * SAMPLE_RATE] = 1.0
    found, detector = _cut(samples, 3.0)
    assert bool(found) == (speech[1] > 0)
    assert max(detector.asked) <= STRETCH_SECONDS + LONGEST_SECONDS + 4.0
    assert sum(detector.asked) < 1.5 * seconds


@pytest.mark.parametrize("seconds", [0.5, 5.0, LONGEST_SECONDS])
def test_a_short_recording_stays_whole(seconds: float) -> None:
    """Its words are heard with everything around them."""
    samples = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    samples[1600:8000] = 1.0
    ((piece,), _) = _cut(samples, 3.0)
    assert (piece.offset, piece.seconds) == (0.0, seconds)
    assert piece.speech == (Span(0.1, 0.5),)


@pytest.mark.parametrize("seconds", [0.0, 1.0, 59.0, 200.0])
def test_no_speech_gives_no_piece(seconds: float) -> None:
    """At any length."""
    assert _cut(np.zeros(round(seconds * SAMPLE_RATE), np.float32), 3.0)[0] == []


def test_pieces_come_before_the_recording_ends() -> None:
    """The first words of an hour are decoded while the rest is still read."""
    samples, _ = _recording([(100, 4000)] * 60, 1.0)
    blocks = iter(_blocks(samples, 3.0))
    next(pieces(blocks, Detector(), padding=0.3))
    assert len(list(blocks)) > 50


def test_a_piece_does_not_keep_its_stretch_alive() -> None:
    """It owns its samples."""
    samples, _ = _recording([(100, 4000)] * 30, 1.0)
    found, _ = _cut(samples, 3.0)
    assert all(piece.samples.base is None for piece in found)
