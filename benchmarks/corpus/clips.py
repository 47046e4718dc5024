"""One clip: its sound, its words, and what a server hears of it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
import wave
from typing import TYPE_CHECKING

import numpy as np
from faster_whisper.audio import decode_audio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

RATE = 16_000
"""Samples per second of every clip's audio."""

NO_SPEECH = "zxx"
"""ISO 639's code for "no linguistic content": the language of silence, noise and music."""


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """One recording and what is said in it; ``reference`` is empty without speech.

    ``group`` is where it comes from (shared, debian, generated), or the group of a corpus that was built.
    """

    id: str
    seconds: float
    language: str
    reference: str
    group: str
    kind: str
    licence: str
    path: Path | None = None
    samples: NDArray[np.float32] | None = None

    @property
    def audio(self) -> NDArray[np.float32]:
        """Mono float32 samples at `RATE`, as faster-whisper decodes them."""
        if self.samples is not None:
            return self.samples
        decoded: NDArray[np.float32] = decode_audio(str(self.path), sampling_rate=RATE)
        return decoded

    @property
    def held_out(self) -> bool:
        """Whether the clip is in the half that no threshold was chosen on (by its words: copies stay together)."""
        return hashlib.sha256((self.reference or self.id).lower().encode()).digest()[0] % 2 == 1


def without_speech(name: str, samples: NDArray[np.floating], group: str = "generated", licence: str = "none") -> Clip:
    """Return a clip in which nothing is said."""
    return Clip(
        id=name,
        seconds=samples.size / RATE,
        language=NO_SPEECH,
        reference="",
        group=group,
        kind="nonspeech",
        licence=licence,
        samples=samples.astype(np.float32),
    )


def wav(audio: NDArray[np.float32]) -> bytes:
    """Return ``audio`` as a 16-bit mono WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(_sixteen_bits(audio).tobytes())
    return buffer.getvalue()


def as_uploaded(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the samples that `wav` leaves of ``audio``: what a server hears, and so what others are to be given.

    A recording has more than 16 bits once it is decoded, and the last of them decide where Whisper hesitates.
    """
    return _sixteen_bits(audio).astype(np.float32) / np.float32(32768)


def joined(clips: Sequence[Clip], seconds: float, *, pause: float = 0.7, name: str = "joined") -> Clip:
    """Return ``clips``, over and over with ``pause`` seconds between them, as one recording of at least ``seconds``.

    The pauses are faint noise, as a room has it: digital silence would make the cutting easier than it is.
    """
    room = (0.0005 * noise(np.random.default_rng(1), pause, 0.5)).astype(np.float32)
    pieces: list[NDArray[np.float32]] = []
    words: list[str] = []
    length = 0
    while length < seconds * RATE:
        clip = clips[len(words) % len(clips)]
        pieces += [clip.audio, room]
        words.append(clip.reference)
        length += clip.audio.size + room.size
    return dataclasses.replace(
        clips[0],
        id=name,
        seconds=length / RATE,
        reference=" ".join(words),
        kind="long",
        path=None,
        samples=np.concatenate(pieces),
    )


def length_group(seconds: float) -> str:
    """Name the bracket of lengths that a clip is reported under."""
    for upper in (3, 6, 10, 15, 30):
        if seconds <= upper:
            return f"<= {upper} s"
    return "> 30 s"


def noise(rng: np.random.Generator, seconds: float, exponent: float) -> NDArray[np.float64]:
    """Return noise whose amplitude falls with frequency to the power ``exponent``; its root mean square is 1."""
    count = int(seconds * RATE)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequencies = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20.0)
    noise: NDArray[np.float64] = np.fft.irfft(spectrum / frequencies**exponent, count)
    noise /= np.sqrt(np.mean(noise**2))
    return noise


def _sixteen_bits(audio: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.clip(np.round(audio * 32768), -32768, 32767).astype("<i2")


def skip(message: str) -> None:
    """Say on standard error what is left out."""
    print(f"corpus: {message}", file=sys.stderr)
