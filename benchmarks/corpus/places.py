"""What a place or a telephone line does to speech: noise, a room's echo, G.711; drawn from a recording's name."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

import corpus

if TYPE_CHECKING:
    from numpy.typing import NDArray


def draw(name: str) -> np.random.Generator:
    """Return random numbers that depend on ``name`` alone."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def telephone(samples: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return ``samples`` as a telephone line leaves them: 300 to 3400 Hz, 8 kHz, eight bits by G.711's curves."""
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(samples.size, 1 / corpus.RATE)
    spectrum[(hertz < 300) | (hertz > 3400)] = 0
    narrow = np.fft.irfft(spectrum, samples.size)[::2]
    narrow = np.clip(narrow / max(np.abs(narrow).max(), 1e-6) * rng.uniform(0.2, 0.9), -1, 1)
    size, sign = np.abs(narrow), np.sign(narrow)
    if rng.random() < 0.5:  # mu-law
        code = np.round(np.log1p(255 * size) / np.log(256) * 127) / 127
        back = sign * np.expm1(code * np.log(256)) / 255
    else:
        whole = 1 + np.log(87.6)
        code = np.where(size < 1 / 87.6, 87.6 * size / whole, (1 + np.log(np.maximum(87.6 * size, 1))) / whole)
        code = np.round(code * 127) / 127
        back = sign * np.where(code < 1 / whole, code * whole / 87.6, np.exp(code * whole - 1) / 87.6)
    wide = np.zeros(2 * back.size)
    wide[::2] = 2 * back
    spectrum = np.fft.rfft(wide)
    spectrum[np.fft.rfftfreq(wide.size, 1 / corpus.RATE) > 3600] = 0
    return np.fft.irfft(spectrum, wide.size).astype(np.float32)


def far(samples: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return ``samples`` as a microphone at the other end of a room hears them."""
    seconds = rng.uniform(0.3, 0.8)
    count = int(seconds * corpus.RATE)
    time = np.arange(count) / corpus.RATE
    room = rng.standard_normal(count) * np.exp(-6.9 * time / seconds)
    room *= np.sqrt(10 ** (rng.uniform(-3, 3) / 10) / np.sum(room**2))
    room[0] += 1
    size = samples.size + count
    heard = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(room, size), size)[: samples.size + count // 2]
    return mixed(heard.astype(np.float32), corpus.noise(rng, heard.size / corpus.RATE, 0.5), 25)


def mixed(samples: NDArray[np.float32], noise: NDArray[Any], decibels: float) -> NDArray[np.float32]:
    """Return ``samples`` with ``noise`` (repeated) so many ``decibels`` below; no louder than full scale."""
    noise = np.resize(noise, samples.size)
    # Speech's level is that of its louder half: pauses would lower it.
    level = np.sqrt(np.mean(np.sort(samples**2)[samples.size // 2 :]))
    noisy = samples + noise / max(np.sqrt(np.mean(noise**2)), 1e-9) * level * 10 ** (-decibels / 20)
    quieter: NDArray[np.float32] = (noisy * min(1.0, 0.95 / np.abs(noisy).max())).astype(np.float32)
    return quieter
