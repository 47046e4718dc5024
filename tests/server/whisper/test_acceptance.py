from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from localwhisper_server.whisper.acceptance import Answer, doubt, is_prompts_doing, repeats

# Five seconds of ordinary speech, answered well.
GOOD = Answer(
    text="Please buy milk and bread on the way home.",
    tokens=11,
    avg_logprob=-0.2,
    compression_ratio=1.1,
    last_timestamp=4.6,
    finished=True,
    seconds=5.0,
    speech_seconds=4.0,
    speech_end=4.5,
)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"language_probability": 0.8},
        {"avg_logprob": -0.55},
        {"compression_ratio": 2.0},
        {"last_timestamp": 6.0},
        {"last_timestamp": 3.5},
        {"tokens": 5},
        {"tokens": 36},
        {"tokens": 12, "speech_seconds": 0.6},  # "Yes." with what stands around it
        {"tokens": 30, "speech_seconds": 0.5},
        {"tokens": 1, "text": "Ja.", "speech_seconds": 0.4, "speech_end": 0.6, "last_timestamp": 0.6},
        {"text": "", "tokens": 0, "speech_seconds": 0.3, "speech_end": 0.3, "last_timestamp": 0.0},
    ],
    ids=lambda changed: " ".join(changed) or "as it is",
)
def test_a_good_answer_stands(changed: dict[str, Any]) -> None:
    """Up to each threshold."""
    assert doubt(replace(GOOD, **changed)) is None


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("language", {"language_probability": 0.79}),
        ("logprob", {"avg_logprob": -0.56}),
        ("compression", {"compression_ratio": 2.01}),
        ("pace", {"tokens": 4}),
        ("pace", {"tokens": 37}),
        ("pace", {"tokens": 13, "speech_seconds": 1.0}),
        ("past the end", {"last_timestamp": 6.1}),
        ("past the end", {"last_timestamp": 22.5}),  # in a clip of five seconds, with a fine log probability
        ("stops early", {"last_timestamp": 3.4}),
        ("stops early", {"text": "Please buy", "tokens": 5, "last_timestamp": 1.0}),  # a sentence cut off
        ("repetition", {"text": "He He He"}),
        ("repetition", {"text": "She had a j j j"}),
        ("repetition", {"text": "please call stammer please call stammer"}),
        ("unfinished", {"finished": False}),
        ("silence", {"text": "", "tokens": 0, "speech_seconds": 0.4, "speech_end": 0.5, "last_timestamp": 0.0}),
    ],
)
def test_each_sign_is_seen_alone(reason: str, changed: dict[str, Any]) -> None:
    """What collapsed, as it was seen to; the reason is named for the metrics."""
    assert doubt(replace(GOOD, **changed)) == reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("he", False),
        ("he he", False),
        ("he he he", True),
        ("He he HE", True),
        ("the very very good", False),
        ("you know you know", False),
        ("you know you know you know", True),
        ("you know I thought you know", False),
        ("thank you very thank you very", True),
        ("so then thank you very much thank you very much", True),
        ("a b c d e f g h a b c d e f g h", True),
        ("a b c d e f g h i a b c d e f g h i", False),  # a refrain
        ("one two three one two four", False),
    ],
)
def test_repetition(text: str, expected: bool) -> None:  # noqa: FBT001 - a table's column
    """A phrase of up to eight words at once again: three times, or three words or more."""
    assert repeats(text) is expected


@pytest.mark.parametrize(
    ("text", "no_speech_prob", "prompt", "expected"),
    [
        ("Welcome to the meeting.", 0.7, "Welcome to the meeting.", True),
        ("I'm sorry. I'm sorry.", 0.9, "Hello, this is Anna speaking.", True),
        ("Welcome to the meeting.", 0.5, "Welcome to the meeting.", False),
        ("Anna Schmidt", 0.1, "Anna Schmidt", False),
        ("Welcome to the meeting.", 0.7, " ", False),
        ("", 0.9, "Welcome to the meeting.", False),
    ],
)
def test_words_that_a_prompt_may_have_made(text: str, no_speech_prob: float, prompt: str, *, expected: bool) -> None:
    """Where nobody seems to speak, any words are under suspicion once there is a prompt; elsewhere none."""
    assert is_prompts_doing(text, no_speech_prob, prompt=prompt) is expected
