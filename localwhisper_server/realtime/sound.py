"""The sound of a stream: bytes of a wire format in, float32 at 16 kHz out, piece by piece. Pure."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from localwhisper_server.types import SAMPLE_RATE, Samples

Encoding = Literal["pcm", "pcmu", "pcma"]
# Input samples on each side of an output sample, in periods of the lower of the two rates. 16 give 70 dB.
ZERO_CROSSINGS = 16
G711_RATE = 8_000
BYTES_PER_SAMPLE = {"pcm": 2, "pcmu": 1, "pcma": 1}


@dataclass(frozen=True, slots=True)
class Format:
    """How sound comes: mono, signed 16-bit little-endian PCM or G.711, at `rate` samples a second."""

    encoding: Encoding = "pcm"
    rate: int = 24_000

    @property
    def bytes_per_second(self) -> int:
        """How many bytes are a second."""
        return self.rate * BYTES_PER_SAMPLE[self.encoding]


class SoundDecoder:
    """Decodes one stream. A sample may be split between two pieces."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self._resample = Resampler(form.rate)
        self._rest = b""

    def __call__(self, data: bytes) -> Samples:
        """Return the samples at 16 kHz that the next bytes complete, shape (n,)."""
        if self.form.encoding != "pcm":
            table = MU_LAW if self.form.encoding == "pcmu" else A_LAW
            return self._resample(table[np.frombuffer(data, np.uint8)])
        data = self._rest + data
        whole = len(data) // 2 * 2
        self._rest = data[whole:]
        return self._resample(np.frombuffer(data[:whole], "<i2").astype(np.float32) / np.float32(32768))


class Resampler:
    """Converts a stream from `rate` to 16 kHz with a windowed sinc; it ends about a millisecond behind its input."""

    def __init__(self, rate: int) -> None:
        divisor = int(np.gcd(rate, SAMPLE_RATE))
        self._up, self._down = SAMPLE_RATE // divisor, rate // divisor
        longest = max(self._up, self._down)
        centre = ZERO_CROSSINGS * longest
        self._half = centre // self._up + 1  # input samples on each side
        steps = np.arange(-centre, centre + 1)
        taps = np.sinc(steps / longest) * np.kaiser(steps.size, 7.0) * self._up / longest
        # One filter for each position that an output sample can have between two input samples.
        at = centre + np.arange(self._up)[:, None] - np.arange(-self._half, self._half + 1) * self._up
        inside = (at >= 0) & (at < taps.size)
        self._filters = np.where(inside, taps[np.clip(at, 0, taps.size - 1)], 0.0).astype(np.float32)
        self._held: Samples = np.zeros(self._half, np.float32)
        self._first = -self._half  # the number of the first held sample
        self._next = 0  # the number of the next output sample

    def __call__(self, samples: Samples) -> Samples:
        """Return the output samples that the next input samples complete."""
        if self._up == self._down:
            return samples
        held = np.concatenate([self._held, samples])
        # Output n lies at input n * down / up, and needs `half` samples after it.
        last = ((self._first + held.size - self._half) * self._up - 1) // self._down
        count = max(0, last + 1 - self._next)
        out = np.empty(count, np.float32)
        if count:
            windows = np.lib.stride_tricks.sliding_window_view(held, 2 * self._half + 1)
            for position in range(min(self._up, count)):
                at, phase = divmod((self._next + position) * self._down, self._up)
                wanted = out[position :: self._up].size
                begin = at - self._half - self._first
                out[position :: self._up] = windows[begin :: self._down][:wanted] @ self._filters[phase]
            self._next += count
        keep = max(0, self._next * self._down // self._up - self._half - self._first)
        self._held, self._first = held[keep:].copy(), self._first + keep
        return out


def _mu_law() -> npt.NDArray[np.float32]:
    """Return the value of each byte of ITU-T G.711 µ-law."""
    code = ~np.arange(256) & 0xFF
    size = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 7)) - 0x84
    return (np.where(code & 0x80, -size, size) / 32768).astype(np.float32)


def _a_law() -> npt.NDArray[np.float32]:
    """Return the value of each byte of ITU-T G.711 A-law."""
    code = np.arange(256) ^ 0x55
    exponent, mantissa = code >> 4 & 7, (code & 0x0F) << 4
    size = np.where(exponent == 0, mantissa + 8, mantissa + 0x108 << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, size, -size) / 32768).astype(np.float32)


MU_LAW = _mu_law()
A_LAW = _a_law()
