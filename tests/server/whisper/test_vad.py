from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from localwhisper_server.types import SAMPLE_RATE, Voice
from localwhisper_server.whisper.vad import find_speech
from tests.server.sound import tone
from tests.server.whisper.recordings import samples_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["demo", "de-5s", "fr-5s", "en-60s"])
def test_speech_is_found(voices: dict[str, Path], name: str) -> None:
    """In order, without overlap, inside the recording, and most of it."""
    samples = samples_of(voices[name])
    spans = find_speech(samples, Voice())
    assert spans
    assert all(before.end <= after.start for before, after in pairwise(spans))
    assert spans[0].start >= 0
    assert spans[-1].end <= samples.size / SAMPLE_RATE
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


WORDS_ALONE = [(0.0, 0.3), (0.6, 0.92), (2.08, 2.48), (2.48, 3.04), (3.04, 3.3), (4.0, 4.36)]


@pytest.mark.parametrize(("start", "end"), WORDS_ALONE)
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
    spans = find_speech(samples, Voice(threshold, padding, silence))
    assert all(0 <= span.start < span.end <= samples.size / SAMPLE_RATE for span in spans)
    assert all(before.end <= after.start for before, after in pairwise(spans))
