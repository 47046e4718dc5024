"""Silence, noises, hums, tones, fans and clicks from a seeded generator; free of any licence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from corpus.clips import RATE, Clip, noise, without_speech

if TYPE_CHECKING:
    from collections.abc import Iterator


def generated(seed: int = 0) -> Iterator[Clip]:
    """Yield silence, noises and machine sounds, the same for the same ``seed``."""
    rng = np.random.default_rng(seed)
    for seconds in (1.0, 5.0, 30.0, 65.0):
        yield without_speech(f"made-silence-{seconds:g}s", np.zeros(int(seconds * RATE)))
    for colour, exponent in (("white", 0.0), ("pink", 0.5), ("brown", 1.0)):
        for level in (0.005, 0.05, 0.3):
            yield without_speech(f"made-{colour}-{level:g}", level * noise(rng, 8.0, exponent))
    time = np.arange(8 * RATE) / RATE
    hum = sum(np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3, 5, 7))
    yield without_speech("made-mains-hum", 0.1 * hum + 0.003 * noise(rng, 8.0, 0.0))
    for hertz in (100, 440, 1000, 3000):
        yield without_speech(f"made-tone-{hertz}", 0.2 * np.sin(2 * np.pi * hertz * time))
    beeps = np.sin(2 * np.pi * 425 * time) * (time % 1.0 < 0.5)
    yield without_speech("made-busy-line", 0.2 * beeps)
    fan = noise(rng, 8.0, 1.0) * (1 + 0.3 * np.sin(2 * np.pi * 11 * time)) + 0.3 * np.sin(2 * np.pi * 120 * time)
    yield without_speech("made-fan", 0.1 * fan)
    for rate in (1, 6):
        clicks = np.zeros(8 * RATE)
        clicks[rng.integers(0, clicks.size, 8 * rate)] = rng.uniform(-0.9, 0.9, 8 * rate)
        yield without_speech(f"made-clicks-{rate}-per-second", np.convolve(clicks, np.exp(-np.arange(80) / 12), "same"))
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (220.0, 277.18, 329.63))
    yield without_speech("made-chord-tremolo", 0.1 * chord * (1 + 0.5 * np.sin(2 * np.pi * 5 * time)))
