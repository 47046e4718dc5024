from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.types import Span
from localwhisper_server.whisper.acceptance import (
    TEMPERATURES,
    Hypothesis,
    compression_ratio,
    decode_with_fallback,
    max_tokens,
    parsed,
    rejection,
    repeats,
)
from tests.server.engine_double import chunk
from tests.server.whisper.vocabulary import Tokenizer, at, tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@pytest.mark.parametrize(
    ("seconds", "tokens", "with_full_window"), [(0.0, 16, 16), (1.0, 27, 32), (5.0, 71, 96), (18.9, 224, 224)]
)
def test_max_tokens(seconds: float, tokens: int, with_full_window: int) -> None:
    """Twice what fast speech needs, or three times with the full window; at most the model's own limit."""
    assert max_tokens(seconds, full_window=False) == tokens
    assert max_tokens(seconds, full_window=True) == with_full_window


# Token parsing


def _parsed(tokens: Sequence[int], seconds: float = 5.0, score: float = -0.1) -> Hypothesis:
    return parsed(tokens, Tokenizer(), seconds, 0.0, score=score, no_speech_prob=0.0)


@pytest.mark.parametrize(
    ("parts", "texts", "last", "ends", "continues_at"),
    [
        ((at(0), " hi", at(2)), [(0.0, 2.0, " hi")], 2.0, True, None),
        ((at(0), " a", at(2), at(2), " b", at(4)), [(0.0, 2.0, " a"), (2.0, 4.0, " b")], 4.0, True, None),
        ((at(0), " a", at(2), at(3), " b", at(4)), [(0.0, 2.0, " a"), (3.0, 4.0, " b")], 4.0, True, None),
        ((at(0), " a", at(2), at(2)), [(0.0, 2.0, " a")], 2.0, True, 2.0),
        ((at(0), " a", at(2), at(2), " b"), [(0.0, 2.0, " a"), (2.0, 5.0, " b")], 2.0, False, None),
        ((at(0), " a", at(9)), [(0.0, 5.0, " a")], 9.0, True, None),
        ((at(8), " a", at(9)), [(5.0, 5.0, " a")], 9.0, True, None),
        ((" a",), [(0.0, 5.0, " a")], 0.0, False, None),
        ((at(0), "  ", at(2), at(2), " b", at(3)), [(2.0, 3.0, " b")], 3.0, True, None),
        ((at(0), at(0)), [], 0.0, True, None),
        ((), [], 0.0, False, None),
    ],
    ids=[
        *("one", "two", "a gap", "more begins", "no end", "past the end", "all past the end", "no timestamps"),
        *("blank", "timestamps alone", "nothing"),
    ],
)
def test_tokens_are_cut_at_their_timestamps(
    parts: Any,
    texts: list[tuple[float, float, str]],
    last: float,
    ends: bool,  # noqa: FBT001 - a table's column
    continues_at: float | None,
) -> None:
    """Texts with words in them, inside the five seconds; two timestamps at the end mean that speech goes on there."""
    found = _parsed(tokens_of(*parts))
    assert [(text.start, text.end, text.text) for text in found.texts] == texts
    assert [list(text.tokens) for text in found.texts] == [tokens_of(text) for *_, text in texts]
    assert (found.last_timestamp, found.ends_in_timestamp, found.continues_at) == (last, ends, continues_at)


@given(st.lists(st.one_of(st.sampled_from(tokens_of(" ab")), st.integers(1000, 2500))), st.floats(0.1, 30))
def test_no_text_lies_past_the_end(sequence: list[int], seconds: float) -> None:
    """Whatever the model decodes; all words are kept, in order."""
    found = _parsed(sequence, seconds)
    assert all(0 <= text.start <= seconds and 0 <= text.end <= seconds for text in found.texts)
    said = "".join(chr(token) for text in found.texts for token in text.tokens)
    assert said.replace(" ", "") == Tokenizer().decode(sequence).replace(" ", "")


def test_the_average_log_probability_is_whispers() -> None:
    """It counts the end of text, which CTranslate2's score leaves out; no tokens are no error."""
    assert _parsed(tokens_of("a quick brown fox")).avg_logprob == pytest.approx(-0.1 * 17 / 18)
    nothing = _parsed([])
    assert (nothing.text, nothing.compression_ratio, nothing.avg_logprob) == ("", 0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "least", "most"), [("", 0, 0), ("a quick brown fox", 0.5, 0.9), ("he " * 60, 9, 99), ("ы" * 9, 1, 2)]
)
def test_compression_ratio(text: str, least: float, most: float) -> None:
    """Of the text's bytes; high for a loop, 0 for nothing."""
    assert least <= compression_ratio(text) <= most


# The temperature fallback


def _hypothesis(text: str, avg_logprob: float = -0.1, no_speech_prob: float = 0.0) -> Hypothesis:
    return Hypothesis((1,), text, 0.0, avg_logprob, compression_ratio(text), no_speech_prob)


GOOD, UNLIKELY, LOOP = _hypothesis("a quick brown fox"), _hypothesis("mumble", -2.0), _hypothesis("he " * 60)


class Model:
    """Gives `script`'s hypothesis for a row at a temperature."""

    def __init__(self, script: Callable[[int, float], Hypothesis]) -> None:
        self.script = script
        self.calls: list[tuple[list[int], float]] = []

    def decode(
        self, *asked: float | None, prompt_lengths: Sequence[int] = (), loops_only: Sequence[bool] = ()
    ) -> list[Hypothesis]:
        """Decode one row for each temperature that is asked for; None for all of them."""

        def generate(numbers: list[int], temperature: float) -> list[Hypothesis]:
            self.calls.append((numbers, temperature))
            return [replace(self.script(number, temperature), temperature=temperature) for number in numbers]

        schedules = [(temperature,) if temperature else TEMPERATURES for temperature in asked]
        return decode_with_fallback(
            generate, schedules, prompt_lengths or [1] * len(asked), loops_only or [False] * len(asked)
        )


@pytest.mark.parametrize("bad", [UNLIKELY, LOOP], ids=["unlikely", "repetitive"])
def test_a_bad_answer_is_tried_at_the_next_temperature(bad: Hypothesis) -> None:
    """Only the rows that need it, until the answer is good; a good first answer is kept."""
    model = Model(lambda row, temperature: bad if row == 1 and temperature < 0.4 else GOOD)
    assert [hypothesis.temperature for hypothesis in model.decode(None, None, None)] == [0.0, 0.4, 0.0]
    assert model.calls == [([0, 1, 2], 0.0), ([1], 0.2), ([1], 0.4)]


def test_a_temperature_that_is_asked_for_is_the_only_one() -> None:
    """Even if its answer is bad, and beside a row that falls back."""
    model = Model(lambda _row, temperature: GOOD if temperature == 1.0 else UNLIKELY)
    own, other = model.decode(0.5, None)
    assert (own.temperature, own.text) == (0.5, "mumble")
    assert other.temperature == 1.0
    assert [rows for rows, temperature in model.calls if temperature == 0.5] == [[0]]


def test_rows_with_prompts_of_different_lengths_are_decoded_separately() -> None:
    """CTranslate2 takes prompts of one length; each row still gets its own answer."""
    model = Model(lambda row, _temperature: _hypothesis(f"row {row} says so"))
    hypotheses = model.decode(None, 0.7, None, None, prompt_lengths=[1, 3, 3, 1])
    assert [hypothesis.text for hypothesis in hypotheses] == [f"row {row} says so" for row in range(4)]
    assert model.calls == [([0, 3], 0.0), ([1], 0.7), ([2], 0.0)]


def test_of_bad_answers_the_most_probable_that_is_not_repetitive() -> None:
    """After all temperatures; if all are repetitive, the most probable of those."""
    answers = {0.0: LOOP, 0.2: _hypothesis("one", -3.0), 0.4: _hypothesis("two", -1.5), 0.6: _hypothesis("three", -2.0)}
    model = Model(lambda _row, temperature: answers.get(temperature, LOOP))
    assert model.decode(None)[0].text == "two"
    assert len(model.calls) == len(TEMPERATURES)
    (loop,) = Model(lambda _row, temperature: _hypothesis("he " * 60, temperature - 2)).decode(None)
    assert loop.temperature == 1.0


def test_an_improbable_answer_may_be_kept() -> None:
    """By a row that is tried again only for loops."""
    model = Model(lambda row, temperature: LOOP if row == 1 and temperature < 0.4 else UNLIKELY)
    kept, looped, other = model.decode(None, None, None, loops_only=[True, True, False])
    assert [kept.temperature, looped.temperature, looped.text] == [0.0, 0.4, "mumble"]
    assert other.text == "mumble"
    assert [rows for rows, _ in model.calls] == [[0, 1, 2], [1, 2], [1, 2], [2], [2], [2]]


def test_silence_is_accepted_at_once() -> None:
    """An improbable text without speech is not tried again."""
    model = Model(lambda _row, _temperature: _hypothesis("thanks for watching", -1.5, no_speech_prob=0.9))
    (hypothesis,) = model.decode(None)
    assert hypothesis.silence
    assert len(model.calls) == 1


# The acceptance check

# What is known of five seconds of ordinary speech, answered well.
ACCEPTED: dict[str, Any] = {
    "text": "Please buy milk and bread on the way home.",
    "count": 11,
    "avg_logprob": -0.2,
    "compression_ratio": 1.1,
    "last_timestamp": 4.6,
    "ends_in_timestamp": True,
    "speech": (0.5, 4.5),
    "language_probability": None,
}


def _rejection(changed: dict[str, Any], *, full_window: bool = False) -> str | None:
    known = ACCEPTED | changed
    count, (start, end), probability = (known.pop(name) for name in ("count", "speech", "language_probability"))
    hypothesis = _parsed(tokens_of("a" * count, at(4)))
    made = chunk(seconds=5.0, speech=(Span(start, end),))
    found = rejection(made, replace(hypothesis, **known), language_probability=probability, full_window=full_window)
    assert found is None or (found[1].is_retry, found[1].frames) == (True, 3000)
    return found and found[0]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"language_probability": 0.3},
        {"avg_logprob": -1.2},
        {"compression_ratio": 2.0},
        {"last_timestamp": 7.0},
        {"last_timestamp": 3.7},
        {"count": 5},
        {"count": 56},
        {"count": 12, "speech": (3.9, 4.5)},  # "Yes." with its punctuation
        {"count": 30, "speech": (4.0, 4.5)},
        {"count": 1, "text": "Ja.", "speech": (0.2, 0.6), "last_timestamp": 0.6},
        {"count": 0, "text": "", "speech": (0.0, 0.3), "last_timestamp": 0.0},
    ],
    ids=lambda changed: " ".join(changed) or "as it is",
)
def test_a_good_answer_is_accepted(changed: dict[str, Any]) -> None:
    """Each threshold itself is still accepted."""
    assert _rejection(changed) is None


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("language", {"language_probability": 0.29}),
        ("logprob", {"avg_logprob": -1.21}),
        ("compression", {"compression_ratio": 2.01}),
        ("speech rate", {"count": 4}),
        ("speech rate", {"count": 57}),
        ("speech rate", {"count": 15, "speech": (3.5, 4.5)}),
        ("past the end", {"last_timestamp": 7.1}),
        ("past the end", {"last_timestamp": 22.5}),  # in a clip of five seconds, with a fine log probability
        ("stops early", {"last_timestamp": 3.6}),
        ("stops early", {"text": "Please buy", "count": 5, "last_timestamp": 1.0}),  # a sentence cut off
        ("stops early", {"last_timestamp": 2.0, "continues_at": 4.5}),  # the remainder would be too short
        ("repetition", {"text": "He He He"}),
        ("repetition", {"text": "She had a j j j"}),
        ("repetition", {"text": "please call stammer please call stammer"}),
        ("unfinished", {"ends_in_timestamp": False}),
        ("unfinished", {"tokens": (1,) * 71}),  # as many as are allowed
        ("silence", {"text": "", "count": 0, "speech": (0.1, 0.5), "last_timestamp": 0.0}),
    ],
)
def test_each_sign_alone_is_a_rejection(reason: str, changed: dict[str, Any]) -> None:
    """Answers of short windows that were seen to go wrong; the reason is a label of the metrics."""
    assert _rejection(changed) == reason
    assert _rejection(changed, full_window=True) is None


def test_speech_after_the_remainders_start_is_not_cut_off() -> None:
    """The model stopped there, and the remainder is decoded next."""
    assert _rejection({"last_timestamp": 3.0, "continues_at": 3.0}) is None


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
    ("text", "no_speech_prob", "hints", "suspect"),
    [
        ("Welcome to the meeting.", 0.7, {"prompt": (1, 2)}, True),
        ("Welcome to the meeting.", 0.9, {"hotwords": (1, 2)}, True),
        ("Welcome to the meeting.", 0.5, {"prompt": (1, 2)}, False),
        ("Welcome to the meeting.", 0.9, {}, False),
        ("", 0.9, {"prompt": (1, 2)}, False),
    ],
)
def test_a_text_that_may_come_from_the_prompt(
    text: str, no_speech_prob: float, hints: dict[str, Any], *, suspect: bool
) -> None:
    """With a prompt, any text is suspect if there is probably no speech; the chunk is decoded again without it."""
    answer = _hypothesis(text, no_speech_prob=no_speech_prob)
    found = rejection(chunk(seconds=5.0, **hints), answer, language_probability=None, full_window=True)
    assert (found is not None) is suspect
    if found:
        reason, again = found
        assert (reason, again.prompt, again.hotwords, again.is_retry) == ("prompt", (), (), False)
