from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server import gate, window
from localwhisper_server.gate import Answer

GOOD = Answer(
    text="please buy milk and bread on the way home",
    tokens=10,
    avg_logprob=-0.3,
    compression_ratio=1.1,
    last_timestamp=4.8,
    finished=True,
    seconds=5.0,
    speech_seconds=4.0,
    speech_end=4.7,
    language_probability=0.98,
)


def test_a_good_answer_stands() -> None:
    """Also where the language was given, and so has no probability."""
    assert gate.doubt(GOOD) is None
    assert gate.doubt(replace(GOOD, language_probability=None)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"language_probability": 0.69}, "language"),
        ({"avg_logprob": -0.71}, "logprob"),
        ({"compression_ratio": 2.01}, "compression"),
        ({"tokens": 4}, "pace"),
        ({"tokens": 40}, "pace"),
        ({"last_timestamp": 6.1}, "past the end"),
        ({"last_timestamp": 3.6}, "stops early"),
        ({"text": "she had a j j j j"}, "repetition"),
        ({"text": "please call stammer please call stammer"}, "repetition"),
        ({"finished": False}, "unfinished"),
        ({"text": "", "tokens": 6}, "silence"),
    ],
)
def test_each_sign_of_a_bad_answer(change: dict[str, object], reason: str) -> None:
    """One is enough, and it is named."""
    assert gate.doubt(replace(GOOD, **change)) == reason  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"language_probability": 0.7},
        {"avg_logprob": -0.7},
        {"compression_ratio": 2.0},
        {"tokens": 5},
        {"tokens": 36},
        {"tokens": 12, "speech_seconds": 1.0, "speech_end": 4.8},
        {"tokens": 1, "speech_seconds": 0.5},
        {"last_timestamp": 6.0},
        {"last_timestamp": 3.7},
        {"text": "no no I mean it"},
        {"text": "", "tokens": 0, "speech_seconds": 0.3},
    ],
)
def test_what_is_just_good_enough(change: dict[str, object]) -> None:
    """The thresholds themselves are on the good side."""
    assert gate.doubt(replace(GOOD, **change)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("", False),
        ("one", False),
        ("no no", False),
        ("He He He He", True),
        ("a b c a b c", True),
        ("a b a b", False),
        ("a b a b a b", True),
        ("Please Call me please call me", True),
        ("one two three four five six seven eight " * 2, True),
        ("the way home and the way back", False),
    ],
)
def test_repetition(text: str, repeated: bool) -> None:  # noqa: FBT001 - a table's column
    """A phrase again at once, three words or more of it; once more of a word or two is how people talk."""
    assert gate.repeats(text) is repeated


@given(st.lists(st.sampled_from("ab"), max_size=20))
def test_text_without_an_echo_never_repeats(words: list[str]) -> None:
    """Unique words never do, whatever they are; a phrase of three said twice always does."""
    assert not gate.repeats(" ".join(f"{word}{number}" for number, word in enumerate(words)))
    assert gate.repeats(" ".join([*words, "x", "y", "z", "x", "y", "z"]))


# The window


@given(st.floats(0.1, 30))
def test_a_window_holds_its_chunk_with_room_behind(seconds: float) -> None:
    """Whole seconds, never under the shortest nor over the model's own."""
    frames = window.frames(seconds, full=False)
    assert frames % 100 == 0
    assert 800 <= frames <= window.FULL_FRAMES
    assert frames == window.FULL_FRAMES or frames >= (seconds + window.MARGIN_SECONDS) * 100 - 1e-6
    assert window.frames(seconds, full=True) == window.FULL_FRAMES == 3000


@given(st.floats(0.1, 30))
def test_tokens_are_allowed_by_length(seconds: float) -> None:
    """Twice the fastest speech, never more than the model writes."""
    allowed = window.most_tokens(seconds, full=False)
    assert allowed == min(224, 16 + math.ceil(11 * seconds))
    assert window.most_tokens(seconds, full=True) == 224
