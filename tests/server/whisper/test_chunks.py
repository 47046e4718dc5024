from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from localwhisper_server.types import AudioChunk, Decoding, Span
from localwhisper_server.whisper.chunks import Preparer, remainder_of
from localwhisper_server.whisper.decoding_rules import Hypothesis, window_frames
from tests.server.engine_double import chunk

TOKENS = (1000, 1, 2, 1050, 1050)  # two timestamps at the end: speech goes on


def _hypothesis(temperature: float = 0.0, no_speech_prob: float = 0.0, avg_logprob: float = -0.2) -> Hypothesis:
    return Hypothesis(TOKENS, "so", temperature, avg_logprob, 1.0, no_speech_prob)


def test_the_remainder_is_the_sound_from_there_on() -> None:
    """At its place in the recording, with the tokens before it; one of less than a second is not decoded."""
    features = np.arange(500, dtype=np.float32)[None]
    whole = replace(
        chunk(60.0, 5.0, decoding=Decoding(language="de"), speech_seconds=4.0, speech_end=4.5, is_retry=True),
        features=features,
        prefix_tokens=(9,),
    )
    remainder = remainder_of(whole, _hypothesis(), 2.0)
    assert remainder is not None
    assert (remainder.offset, remainder.seconds, remainder.features[0, 0]) == (62.0, 3.0, 200.0)
    assert (remainder.decoding, remainder.is_retry) == (whole.decoding, False)
    assert remainder.prefix_tokens == (9, 1000, 1, 2, 1050)
    assert remainder.speech_end == pytest.approx(2.5)
    assert remainder_of(whole, _hypothesis(), None) is remainder_of(whole, _hypothesis(), 4.5) is None


def test_silence_has_no_remainder() -> None:
    """Its text counts for nothing, its timestamps neither."""
    assert remainder_of(chunk(seconds=5.0), _hypothesis(no_speech_prob=0.9, avg_logprob=-2.0), 2.0) is None


@pytest.mark.parametrize(("temperature", "kept"), [(0.0, True), (0.4, True), (0.6, False)])
def test_text_of_a_high_temperature_is_no_prefix(temperature: float, *, kept: bool) -> None:
    """It may be invented, and would lead to more of the same."""
    remainder = remainder_of(chunk(seconds=5.0), _hypothesis(temperature), 2.0)
    assert remainder is not None
    assert remainder.prefix_tokens == (TOKENS[:-1] if kept else ())


@pytest.mark.parametrize(
    ("seconds", "full", "temperature"),
    [(1.0, False, None), (10.0, False, 0.0), (10.0, True, None), (10.0, False, 0.5)],
)
def test_the_frames_of_a_chunk(seconds: float, temperature: float | None, *, full: bool) -> None:
    """Its length and a margin; the full window if asked for, and at a temperature the acceptance check cannot judge."""
    made = chunk(seconds=seconds, decoding=Decoding(temperature=temperature), full_window=full)
    assert made.frames == window_frames(seconds, full_window=full or temperature == 0.5)


def test_preparing_needs_no_model() -> None:
    """Features and the sum of the speech."""
    prepare = Preparer(lambda samples: np.zeros((80, samples.size // 160 + 1)), lambda _: [])
    piece = AudioChunk(np.zeros(32_000, np.float32), 7.0, (Span(0.1, 0.6), Span(1.0, 1.5)))
    chunk = prepare(piece, Decoding(language="de"), full_window=True)
    assert chunk.features.shape == (80, 200)
    assert chunk.features.dtype == np.float32
    assert (chunk.seconds, chunk.offset, chunk.full_window, chunk.decoding.language) == (2.0, 7.0, True, "de")
    assert (chunk.speech_seconds, chunk.speech_end) == (pytest.approx(1.0), 1.5)
    assert prepare(AudioChunk(np.zeros(1600, np.float32), 0.0, ()), Decoding()).speech_end == 0.0


def test_hints_are_encoded_once_for_a_recording() -> None:
    """However many chunks it has; the engine's thread gets tokens."""
    asked: list[str] = []

    def encode(text: str) -> list[int]:
        asked.append(text)
        return [len(text)]

    prepare = Preparer(lambda samples: np.zeros((80, samples.size // 160 + 1)), encode)
    decoding = Decoding(prompt=" a hint ", hotwords="words")
    chunks = [prepare(AudioChunk(np.zeros(16_000, np.float32), float(at), ()), decoding) for at in range(5)]
    assert {(chunk.prompt, chunk.hotwords) for chunk in chunks} == {((7,), (6,))}
    assert asked == [" a hint", " words"]
