"""Sound from the wire."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.realtime.sound import A_LAW, MU_LAW, Format, Resampler, SoundDecoder


def tone(frequency: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    """Return a sine of amplitude 1."""
    return np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000])
@pytest.mark.parametrize("frequency", [100, 1000, 3000])
def test_a_tone_keeps_its_pitch_and_level(rate: int, frequency: float) -> None:
    """At 16 kHz it is the tone that would have been recorded at 16 kHz, a thousandth off at most."""
    heard, wanted = Resampler(rate)(tone(frequency, rate)), tone(frequency, 16_000)
    assert wanted.size - heard.size < 40  # some 2 ms wait for the next samples
    assert np.abs(heard - wanted[: heard.size])[100:].max() < 2e-3


def test_what_16_khz_cannot_hold_is_removed() -> None:
    """A tone of 11 kHz would otherwise be heard as one of 5 kHz."""
    assert np.abs(Resampler(24_000)(tone(11_000, 24_000)))[100:].max() < 1e-3


@given(st.lists(st.integers(0, 700), max_size=12), st.sampled_from([8_000, 16_000, 24_000]))
def test_pieces_of_any_size_give_the_same_sound(sizes: list[int], rate: int) -> None:
    """Where a stream is split does not matter."""
    samples = np.random.default_rng(1).normal(0, 0.3, sum(sizes)).astype(np.float32)
    whole, pieces = Resampler(rate)(samples), Resampler(rate)
    edges = np.cumsum([0, *sizes])
    parts = [pieces(samples[first:last]) for first, last in itertools.pairwise(edges)]
    joined = np.concatenate([np.empty(0, np.float32), *parts])
    assert joined.size == whole.size
    assert np.allclose(joined, whole, atol=1e-6)


def test_pcm_is_split_in_the_middle_of_a_sample() -> None:
    """An odd number of bytes is no error; the other half comes with the next piece."""
    data = np.array([0, 16384, -32768, 32767], "<i2").tobytes()
    decoder = SoundDecoder(Format("pcm", 16_000))
    parts = [decoder(data[:1]), decoder(data[1:4]), decoder(data[4:7]), decoder(data[7:])]
    assert np.concatenate(parts) == pytest.approx([0, 0.5, -1, 32767 / 32768])


@pytest.mark.parametrize(
    ("table", "code", "value"),
    [
        # ITU-T G.711, tables 1 and 2, in units of the 16-bit scale
        (MU_LAW, 0xFF, 0), (MU_LAW, 0x7F, 0), (MU_LAW, 0x80, 32124), (MU_LAW, 0x00, -32124), (MU_LAW, 0xFE, 8),
        (MU_LAW, 0xEF, 132), (MU_LAW, 0x6F, -132),
        (A_LAW, 0xD5, 8), (A_LAW, 0x55, -8), (A_LAW, 0xAA, 32256), (A_LAW, 0x2A, -32256), (A_LAW, 0xC5, 264),
    ],
)  # fmt: skip
def test_g711_has_the_values_of_the_standard(table: np.ndarray, code: int, value: int) -> None:
    """Each byte is one sample."""
    assert table[code] * 32768 == value


@pytest.mark.parametrize("encoding", ["pcmu", "pcma"])
def test_a_second_of_g711_is_a_second(encoding: str) -> None:
    """8000 bytes give 16000 samples, but for what waits in the filter."""
    heard = SoundDecoder(Format(encoding, 8_000))(bytes(8000))  # type: ignore[arg-type]
    assert 15_900 < heard.size <= 16_000
