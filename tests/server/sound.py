"""Sound made in the test, and containers made from it."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np


def tone(seconds: float, rate: int = 16_000, channels: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a 440 Hz tone in [-0.5, 0.5], shape (channels, n)."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def encode(
    samples: np.ndarray[Any, Any], *, container: str = "wav", codec: str = "pcm_s16le", rate: int = 16_000
) -> bytes:
    """Encode float samples of shape (channels, n) into a container."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        layout = "stereo" if samples.shape[0] == 2 else "mono"
        stream = output.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return file.getvalue()
