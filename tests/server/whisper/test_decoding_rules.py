from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.whisper.decoding_rules import (
    MARGIN_SECONDS,
    TEMPERATURES,
    Answer,
    Hypothesis,
    compression_ratio,
    decode_with_fallback,
    likeliest_language,
    max_tokens,
    may_echo_prompt,
    rejection,
    repeats,
    temperatures,
    window_frames,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The window


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [
        (0.1, 1000),
        (7.0, 1000),
        (7.01, 1100),
        (8.0, 1100),
        (8.5, 1200),
        (12.0, 1500),
        (26.5, 3000),
        (27.0, 3000),
        (60, 3000),
    ],
)
def test_window_frames(seconds: float, frames: int) -> None:
    """The sound and a margin, in whole seconds: at least ten, at most Whisper's full window."""
    assert window_frames(seconds, full_window=False) == frames
    assert window_frames(seconds, full_window=True) == 3000


@pytest.mark.parametrize(("seconds", "tokens"), [(0.0, 16), (1.0, 27), (5.0, 71), (18.9, 224), (30.0, 224)])
def test_max_tokens(seconds: float, tokens: int) -> None:
    """Twice what fast speech needs, at most the model's own limit."""
    assert max_tokens(seconds, full_window=False) == tokens
    assert max_tokens(seconds, full_window=True) == 224


@given(st.floats(0, 30), st.floats(0, 30))
def test_more_sound_never_gets_less(one: float, other: float) -> None:
    """Neither frames nor tokens; and the window covers the sound and its margin."""
    shorter, longer = sorted((one, other))
    assert window_frames(shorter, full_window=False) <= window_frames(longer, full_window=False)
    assert max_tokens(shorter, full_window=False) <= max_tokens(longer, full_window=False)
    assert window_frames(longer, full_window=False) >= min(3000, (longer + MARGIN_SECONDS) * 100 - 1e-6)


# The temperature fallback


def _hypothesis(text: str, score: float = -0.1, no_speech_prob: float = 0.0, temperature: float = 0.0) -> Hypothesis:
    return Hypothesis.scored(
        [ord(letter) for letter in text], text, temperature, score=score, no_speech_prob=no_speech_prob
    )


GOOD, UNLIKELY, LOOP = _hypothesis("a quick brown fox"), _hypothesis("mumble", -2.0), _hypothesis("he " * 60)


class Model:
    """Gives `script`'s hypothesis for a row at a temperature."""

    def __init__(self, script: Callable[[int, float], Hypothesis]) -> None:
        self.script = script
        self.calls: list[tuple[list[int], float]] = []

    def decode(self, asked: Sequence[float | None], prompt_lengths: Sequence[int] | None = None) -> list[Hypothesis]:
        """Decode one row for each temperature that is asked for."""

        def generate(numbers: list[int], temperature: float) -> list[Hypothesis]:
            self.calls.append((numbers, temperature))
            return [replace(self.script(number, temperature), temperature=temperature) for number in numbers]

        schedules = [temperatures(temperature) for temperature in asked]
        return decode_with_fallback(generate, schedules, prompt_lengths or [1] * len(asked))


def test_a_good_first_answer_is_kept() -> None:
    """Without a second call."""
    model = Model(lambda _row, _temperature: GOOD)
    (hypothesis,) = model.decode([None])
    assert (hypothesis.text, hypothesis.temperature) == ("a quick brown fox", 0.0)
    assert model.calls == [([0], 0.0)]


def test_the_average_log_probability_is_whispers() -> None:
    """It counts the end of text, which CTranslate2's score leaves out; no tokens are no error."""
    assert GOOD.avg_logprob == pytest.approx(-0.1 * 17 / 18)
    nothing = _hypothesis("")
    assert (nothing.compression_ratio, nothing.avg_logprob) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [UNLIKELY, LOOP], ids=["unlikely", "repetitive"])
def test_a_bad_answer_is_tried_at_the_next_temperature(bad: Hypothesis) -> None:
    """Only the rows that need it, until the answer is good."""
    model = Model(lambda row, temperature: bad if row == 1 and temperature < 0.4 else GOOD)
    hypotheses = model.decode([None, 0.0, None])
    assert [hypothesis.temperature for hypothesis in hypotheses] == [0.0, 0.4, 0.0]
    assert model.calls == [([0, 1, 2], 0.0), ([1], 0.2), ([1], 0.4)]


def test_a_temperature_that_is_asked_for_is_the_only_one() -> None:
    """Even if its answer is bad, and beside a row that falls back."""
    model = Model(lambda _row, temperature: GOOD if temperature == 1.0 else UNLIKELY)
    own, other = model.decode([0.5, None])
    assert (own.temperature, own.text) == (0.5, "mumble")
    assert other.temperature == 1.0
    assert [rows for rows, temperature in model.calls if temperature == 0.5] == [[0]]


def test_rows_with_prompts_of_different_lengths_are_decoded_separately() -> None:
    """CTranslate2 takes prompts of one length; each row still gets its own answer."""
    model = Model(lambda row, _temperature: _hypothesis(f"row {row} says so"))
    hypotheses = model.decode([None, 0.7, None, None], prompt_lengths=[1, 3, 3, 1])
    assert [hypothesis.text for hypothesis in hypotheses] == [f"row {row} says so" for row in range(4)]
    assert model.calls == [([0, 3], 0.0), ([1], 0.7), ([2], 0.0)]


def test_of_bad_answers_the_most_probable_that_is_not_repetitive() -> None:
    """After all temperatures; if all are repetitive, the most probable of those."""
    answers = {0.0: LOOP, 0.2: _hypothesis("one", -3.0), 0.4: _hypothesis("two", -1.5), 0.6: _hypothesis("three", -2.0)}
    model = Model(lambda _row, temperature: answers.get(temperature, LOOP))
    assert model.decode([None])[0].text == "two"
    assert len(model.calls) == len(TEMPERATURES)
    (loop,) = Model(lambda _row, temperature: _hypothesis("he " * 60, temperature - 2)).decode([None])
    assert loop.temperature == 1.0


def test_silence_is_accepted_at_once() -> None:
    """An improbable text without speech is not tried again."""
    model = Model(lambda _row, _temperature: _hypothesis("thanks for watching", -1.5, no_speech_prob=0.9))
    (hypothesis,) = model.decode([None])
    assert hypothesis.silence
    assert len(model.calls) == 1


@pytest.mark.parametrize(
    ("text", "least", "most"), [("", 0, 0), ("a quick brown fox", 0.5, 0.9), ("he " * 60, 9, 99), ("ы" * 9, 1, 2)]
)
def test_compression_ratio(text: str, least: float, most: float) -> None:
    """Of the text's bytes; high for a loop, 0 for nothing."""
    assert least <= compression_ratio(text) <= most


@pytest.mark.parametrize(
    ("among", "code", "probability"),
    [((), "yi", 0.5), (("de", "en"), "de", 0.75), (("en",), "en", 1.0), (("fr",), "yi", 0.5)],
)
def test_the_likeliest_of_the_hinted_languages(among: tuple[str, ...], code: str, probability: float) -> None:
    """German with German and English hinted is German, however probable Yiddish is."""
    ranked = [("<|yi|>", 0.5), ("<|de|>", 0.3), ("<|en|>", 0.1)]
    assert likeliest_language(ranked, among) == (code, pytest.approx(probability))


# The acceptance check

# Five seconds of ordinary speech, answered well.
ACCEPTED = Answer(
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
        {"tokens": 12, "speech_seconds": 0.6},  # "Yes." with its punctuation
        {"tokens": 30, "speech_seconds": 0.5},
        {"tokens": 1, "text": "Ja.", "speech_seconds": 0.4, "speech_end": 0.6, "last_timestamp": 0.6},
        {"text": "", "tokens": 0, "speech_seconds": 0.3, "speech_end": 0.3, "last_timestamp": 0.0},
    ],
    ids=lambda changed: " ".join(changed) or "as it is",
)
def test_a_good_answer_is_accepted(changed: dict[str, Any]) -> None:
    """Each threshold itself is still accepted."""
    assert rejection(replace(ACCEPTED, **changed)) is None


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("language", {"language_probability": 0.79}),
        ("logprob", {"avg_logprob": -0.56}),
        ("compression", {"compression_ratio": 2.01}),
        ("speech rate", {"tokens": 4}),
        ("speech rate", {"tokens": 37}),
        ("speech rate", {"tokens": 13, "speech_seconds": 1.0}),
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
def test_each_sign_alone_is_a_rejection(reason: str, changed: dict[str, Any]) -> None:
    """Answers of short windows that were seen to go wrong; the reason is a label of the metrics."""
    assert rejection(replace(ACCEPTED, **changed)) == reason


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
    """A phrase of up to eight words comes three times in a row, or one of three words or more twice."""
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
def test_a_text_that_may_come_from_the_prompt(text: str, no_speech_prob: float, prompt: str, *, expected: bool) -> None:
    """With a prompt, any text is suspect if there is probably no speech."""
    assert may_echo_prompt(text, no_speech_prob, prompt=prompt) is expected
