from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.chunks import WINDOW_SECONDS, Span, cut

EPSILON = 1e-6
# Gaps and lengths in turn, in milliseconds as a detector gives them.
SPEECH = st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 90_000)), max_size=30)


def _spans(pairs: list[tuple[int, int]]) -> list[Span]:
    spans, at = [], 0
    for gap, length in pairs:
        spans.append(Span((at + gap) / 1000, (at + gap + length) / 1000))
        at += gap + length
    return spans


@given(SPEECH, st.floats(0, 60), st.sampled_from([5.0, WINDOW_SECONDS]))
def test_chunks_hold_all_speech_in_order_without_overlap(
    pairs: list[tuple[int, int]], tail: float, longest: float
) -> None:
    """Whatever was said is in a chunk, no moment is in two, none is longer than a window or outside the recording."""
    speech = _spans(pairs)
    duration = (speech[-1].end if speech else 0.0) + tail
    chunks = cut(speech, duration, longest=longest)
    assert all(0 < chunk.seconds <= longest + EPSILON for chunk in chunks)
    assert all(chunk.start >= 0 and chunk.end <= duration + EPSILON for chunk in chunks)
    assert all(before.end <= after.start + EPSILON for before, after in pairwise(chunks))
    for span in speech:
        covered = sum(max(0.0, min(span.end, chunk.end) - max(span.start, chunk.start)) for chunk in chunks)
        assert covered == pytest.approx(span.seconds, abs=1e-3)


@given(SPEECH.filter(bool))
def test_no_chunk_begins_or_ends_in_silence(pairs: list[tuple[int, int]]) -> None:
    """In a recording longer than a window; silence is not paid for."""
    speech = _spans(pairs)
    chunks = cut(speech, speech[-1].end + WINDOW_SECONDS)
    inside = [
        any(span.start - EPSILON <= moment <= span.end + EPSILON for span in speech)
        for chunk in chunks
        for moment in (chunk.start, chunk.end)
    ]
    assert all(inside)


def test_no_speech_gives_no_chunk() -> None:
    """At any length."""
    assert cut([], 3.0) == cut([], 3600.0) == []


@pytest.mark.parametrize("duration", [0.5, 5.0, WINDOW_SECONDS])
def test_a_recording_of_one_window_stays_whole(duration: float) -> None:
    """Its words are heard with everything around them."""
    assert cut([Span(0.1, 0.2), Span(0.3, 0.4)], duration) == [Span(0.0, duration)]


def test_neighbours_are_joined_while_they_fit() -> None:
    """Few, long chunks, cut where nobody speaks."""
    speech = [Span(1, 10), Span(12, 30), Span(31, 40), Span(45, 61), Span(61.5, 62)]
    assert cut(speech, 70.0) == [Span(1, 30), Span(31, 61), Span(61.5, 62)]


def test_one_long_span_is_cut_in_windows() -> None:
    """Somebody who never pauses."""
    assert cut([Span(5, 75)], 80.0) == [Span(5, 35), Span(35, 65), Span(65, 75)]
    assert cut([Span(5, 65)], 80.0) == [Span(5, 35), Span(35, 65)]
