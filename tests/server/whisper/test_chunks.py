from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Span, Voice
from localwhisper_server.whisper.chunks import Preparer, find_speech, window_frames
from tests.server.engine_double import chunk
from tests.server.sound import tone
from tests.server.whisper.recordings import samples_of

if TYPE_CHECKING:
    from pathlib import Path

    from localwhisper_server.types import Samples

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
        (12.01, 2100),
        (21.0, 2900),
        (21.01, 3000),
        (60, 3000),
    ],
)
def test_window_frames(seconds: float, frames: int) -> None:
    """The sound and a margin, in whole seconds: at least ten, at most Whisper's full window."""
    assert window_frames(seconds) == frames


@pytest.mark.parametrize(
    ("full", "temperature", "frames"), [(False, None, 1300), (False, 0.0, 1300), (True, None, 3000), (False, 0.5, 3000)]
)
def test_the_frames_of_a_chunk(temperature: float | None, frames: int, *, full: bool) -> None:
    """The full window if asked for, and at a temperature the acceptance check cannot judge."""
    assert chunk(seconds=10.0, decoding=Decoding(temperature=temperature), full_window=full).frames == frames


# Chunks


def test_the_remainder_is_the_sound_from_there_on() -> None:
    """At its place in the recording, with the tokens before it; one of less than a second is not decoded."""
    speech = (Span(0.0, 1.0), Span(1.5, 2.5), Span(3.0, 4.5))
    whole = chunk(60.0, 5.0, decoding=Decoding(language="de"), speech=speech, is_retry=True)
    whole = replace(whole, features=np.arange(500, dtype=np.float32)[None])
    remainder = whole.remainder(2.0, (9, 1, 2))
    assert remainder is not None
    assert (remainder.offset, remainder.seconds, remainder.features[0, 0]) == (62.0, 3.0, 200.0)
    assert (remainder.decoding, remainder.is_retry, remainder.prefix_tokens) == (whole.decoding, False, (9, 1, 2))
    assert remainder.speech == (Span(0.0, 0.5), Span(1.0, 2.5))
    assert whole.remainder(4.5, ()) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ((5.2, 5.6), (5.2, 5.6)),
        ((0.0, 5.6), (4.8, 5.6)),  # the first word of a recording that begins with silence
        ((6.8, 12.4), (6.8, 12.4)),  # speech at both ends: a sentence with a pause in it
        ((7.0, 12.4), (11.8, 12.4)),
        ((6.6, 11.9), (6.6, 7.2)),
        ((0.0, 20.0), (4.8, 13.2)),
        ((8.0, 9.0), (8.0, 9.0)),  # the detector missed it
        ((4.9, 5.1), (4.9, 5.1)),
        ((12.5, 14.0), (12.5, 13.2)),
        ((29.0, 31.0), (29.0, 30.0)),
    ],
)
def test_a_text_lasts_as_long_as_its_speech(text: tuple[float, float], expected: tuple[float, float]) -> None:
    """Without the silence before and after it, but for a margin of what the detector may have missed."""
    speech = (Span(5.0, 6.0), Span(6.5, 7.0), Span(12.0, 13.0))
    found = chunk(600.0, 30.0, speech=speech).in_recording(*text, 2)
    assert found == pytest.approx((600.0 + expected[0], 600.0 + expected[1]))


def test_preparing_needs_no_model() -> None:
    """Features; hints are encoded once for a recording, however many chunks it has."""
    asked: list[str] = []

    def encode(text: str) -> list[int]:
        asked.append(text)
        return [len(text)]

    prepare = Preparer(lambda samples: np.zeros((80, samples.size // 160 + 1)), encode)
    decoding = Decoding(language="de", prompt=" a hint ", hotwords="words")
    piece = AudioChunk(np.zeros(32_000, np.float32), 7.0, (Span(0.1, 0.6), Span(1.0, 1.5)))
    for _ in range(5):
        made = prepare(piece, decoding, full_window=True)
        assert (made.features.shape, made.features.dtype) == ((80, 200), np.float32)
        assert (made.seconds, made.offset, made.full_window, made.decoding) == (2.0, 7.0, True, decoding)
        assert (made.speech, made.prompt, made.hotwords) == (piece.speech, (7,), (6,))
    assert asked == [" a hint", " words"]


# Voice activity detection


def _in_order(spans: list[Span], samples: Samples) -> bool:
    edges = [0.0, *(edge for span in spans for edge in (span.start, span.end)), samples.size / SAMPLE_RATE]
    return edges == sorted(edges)


@pytest.mark.parametrize("name", ["demo", "de-5s", "fr-5s", "en-60s"])
def test_speech_is_found(voices: dict[str, Path], name: str) -> None:
    """In order, without overlap, inside the recording, and most of it."""
    samples = samples_of(voices[name])
    spans = find_speech(samples, Voice())
    assert _in_order(spans, samples)
    assert sum(span.seconds for span in spans) > samples.size / SAMPLE_RATE / 2


@pytest.mark.parametrize("seconds", [0.1, 1.0, 10.0, 70.0])
@pytest.mark.parametrize("kind", ["silence", "noise", "tone"])
def test_no_speech_is_found_in_silence(seconds: float, kind: str) -> None:
    """Nor in noise or a tone, at any length."""
    count = round(seconds * SAMPLE_RATE)
    noise = np.random.default_rng(0).normal(0, 0.02, count).astype(np.float32)
    samples = {"silence": np.zeros(count, np.float32), "noise": noise, "tone": tone(seconds)[0]}[kind]
    assert find_speech(samples, Voice()) == []


@pytest.mark.parametrize("decibels", [-40, -50, -60, -66])
def test_faint_speech_is_found(voices: dict[str, Path], decibels: int) -> None:
    """As much of it as at full level, in 16 bits, and beside a loud click."""
    samples = samples_of(voices["en-60s"])[: 25 * SAMPLE_RATE]
    faint = samples / np.abs(samples).max() * 10 ** (decibels / 20)
    faint = np.round(faint * 32768).astype(np.float32) / np.float32(32768)
    expected = sum(span.seconds for span in find_speech(samples, Voice()))
    assert sum(span.seconds for span in find_speech(faint, Voice())) == pytest.approx(expected, rel=0.15)
    faint[4 * SAMPLE_RATE : 4 * SAMPLE_RATE + 16] = 0.9
    assert sum(span.seconds for span in find_speech(faint, Voice())) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("decibels", [-30, -50, -70, -90])
def test_no_speech_is_found_in_faint_noise(decibels: int) -> None:
    """Raising the level of faint sound makes no speech of it."""
    level = 10 ** (decibels / 20)
    noise = np.random.default_rng(0).normal(0, level, 30 * SAMPLE_RATE).astype(np.float32)
    assert find_speech(noise, Voice()) == []
    assert find_speech(np.round(noise * 32768).astype(np.float32) / np.float32(32768), Voice()) == []


@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 0.3), (0.6, 0.92), (2.08, 2.48), (2.48, 3.04), (3.04, 3.3), (4.0, 4.36)]
)
def test_a_word_alone_is_found(voices: dict[str, Path], start: float, end: float) -> None:
    """Cut out, a third of a second long: "please", "milk", "home", "and", "call", "there"."""
    word = samples_of(voices["demo"])[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    assert find_speech(word, Voice())


@pytest.mark.parametrize("milliseconds", [20, 60, 160, 240])
@pytest.mark.parametrize("kind", ["click", "beep", "thump"])
def test_no_speech_is_found_in_short_sounds(milliseconds: int, kind: str) -> None:
    """Bursts as long as a short word."""
    count = milliseconds * SAMPLE_RATE // 1000
    fall = np.exp(-np.arange(count) / count * 4)
    burst = {
        "click": np.random.default_rng(1).normal(0, 0.3, count) * fall,
        "beep": 0.4 * np.sin(2 * np.pi * 880 * np.arange(count) / SAMPLE_RATE),
        "thump": 0.6 * np.sin(2 * np.pi * 90 * np.arange(count) / SAMPLE_RATE) * fall,
    }[kind]
    samples = np.zeros(2 * SAMPLE_RATE, np.float32)
    samples[SAMPLE_RATE // 2 :][:count] = burst
    assert find_speech(samples, Voice()) == []
    assert find_speech(burst.astype(np.float32), Voice()) == []


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("padding", [0, 300, 10_000])
@pytest.mark.parametrize("silence", [0, 200, 30_000])
def test_any_settings_of_the_detector_are_taken(
    voices: dict[str, Path], threshold: float, padding: int, silence: int
) -> None:
    """Whatever the form accepts gives spans inside the recording, in order."""
    samples = samples_of(voices["demo"])
    assert _in_order(find_speech(samples, Voice(threshold, padding, silence)), samples)
