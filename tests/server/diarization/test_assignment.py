from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.diarization.assignment import assign
from localwhisper_server.diarization.timeline import Timeline
from localwhisper_server.diarization.windows import FRAME_SECONDS
from localwhisper_server.types import Segment, Word


def _timeline(*parts: tuple[float, dict[int, float]], speakers: int = 3) -> Timeline:
    """Return a timeline of parts: how long, and how active each speaker is."""
    rows = []
    for seconds, active in parts:
        row = [active.get(speaker, 0.0) for speaker in range(speakers)]
        rows += [row] * round(seconds / FRAME_SECONDS)
    return Timeline(np.array(rows, np.float32).reshape(-1, speakers))


def _segment(*words: tuple[str, float, float], glue: str = " ") -> Segment:
    text = "".join(glue + word for word, *_ in words)
    return Segment(words[0][1], words[-1][2], text, words=tuple(Word(*word) for word in words), tokens=(1, 2))


TWO = _timeline((2, {0: 1.0}), (2, {1: 1.0}))


def _said(*segments: Segment, timeline: Timeline = TWO, names: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return [(segment.speaker, segment.text) for segment in assign(segments, timeline, names)]


def test_a_segment_is_split_where_the_speaker_changes() -> None:
    """Each part has its own words, text and times, and together they have all of the text."""
    whole = _segment(("Hello,", 0.1, 0.8), ("you.", 1.0, 1.7), ("Yes?", 2.2, 2.8), ("Me?", 3.0, 3.5))
    first, second = assign([whole], TWO, ())
    assert (first.speaker, first.text, first.start, first.end) == ("A", " Hello, you.", 0.1, 1.7)
    assert (second.speaker, second.text, second.start, second.end) == ("B", " Yes? Me?", 2.2, 3.5)
    assert first.words + second.words == whole.words


def test_letters_are_in_the_order_of_the_first_words() -> None:
    """Whatever the columns of the timeline are."""
    timeline = _timeline((1, {2: 1.0}), (1, {0: 1.0}), (1, {2: 1.0}))
    words = [_segment((text, at + 0.2, at + 0.8)) for at, text in enumerate("abc")]
    assert _said(*words, timeline=timeline) == [("A", " a"), ("B", " b"), ("A", " c")]


def test_known_speakers_have_their_names_and_others_the_free_letters() -> None:
    """A known speaker may be called A."""
    timeline = _timeline((1, {0: 1.0}), (1, {1: 1.0}), (1, {2: 1.0}))
    words = [_segment((text, at + 0.2, at + 0.8)) for at, text in enumerate("abc")]
    assert [who for who, _ in _said(*words, timeline=timeline, names=("A",))] == ["A", "B", "C"]
    assert [who for who, _ in _said(*words, timeline=timeline, names=("Zoë", "Al"))] == ["Zoë", "Al", "A"]


def test_overlapping_speech_goes_to_the_more_active() -> None:
    """Both are active; one is louder."""
    timeline = _timeline((2, {0: 0.7, 1: 0.9}))
    assert timeline.speaker(0.5, 1.0) == 1


def test_a_word_in_a_pause_is_the_nearest_speakers() -> None:
    """The times of words are a little off."""
    timeline = _timeline((1, {0: 1.0}), (2, {}), (1, {1: 1.0}))
    assert [timeline.speaker(at, at + 0.2) for at in (1.2, 2.5, 99.0)] == [0, 1, 1]


def test_a_tiny_piece_of_another_is_an_error_of_the_times() -> None:
    """A word of 0.2 s amid another's speech is not split off; one of 0.4 s is."""
    timeline = _timeline((1, {0: 1.0}), (0.4, {1: 1.0}), (1, {0: 1.0}))
    short = _segment(("one", 0.2, 0.9), ("two", 1.1, 1.3), ("three", 1.5, 2.0))
    long = _segment(("one", 0.2, 0.9), ("two", 1.0, 1.4), ("three", 1.5, 2.0))
    assert len(_said(short, timeline=timeline)) == 1
    assert len(_said(long, timeline=timeline)) == 3


@pytest.mark.parametrize("glue", ["", " "])
def test_scripts_without_spaces(glue: str) -> None:
    """The text is cut at words, not at spaces."""
    whole = _segment(("你好", 0.1, 1.0), ("吗。", 1.0, 1.8), ("好。", 2.2, 3.0), glue=glue)
    assert [text for _, text in _said(whole)] == [f"{glue}你好{glue}吗。", f"{glue}好。"]


def test_a_segment_without_words_is_its_most_active_speakers() -> None:
    """So is one whose words are not those of its text; without any speech the speaker before stays."""
    assert _said(Segment(2.5, 3.5, " Yes.")) == [("A", " Yes.")]
    odd = Segment(0.0, 4.0, " 12", words=(Word("one", 0.0, 0.5), Word("two", 2.1, 3.9)))
    assert len(_said(odd)) == 1
    assert _said(_segment(("Hm.", 0.0, 1.0)), timeline=_timeline()) == [("A", " Hm.")]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_no_word_is_lost_and_no_segment_mixes_two(speakers: list[int]) -> None:
    """For any order of speakers, a second each."""
    timeline = _timeline(*((1, {speaker: 1.0}) for speaker in speakers))
    words = [(f"w{at}", at + 0.3, at + 0.7) for at in range(len(speakers))]
    whole = _segment(*words)
    parts = assign([whole], timeline, ())
    assert "".join(part.text for part in parts) == whole.text
    assert [len(part.words) for part in parts] == [len(list(run)) for _, run in itertools.groupby(speakers)]
    assert all(one.speaker != other.speaker for one, other in itertools.pairwise(parts))
