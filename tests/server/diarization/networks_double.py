"""A double of the two networks: the value of the samples says who speaks."""

from __future__ import annotations

import threading

import numpy as np

from localwhisper_server.diarization.networks import (
    FRAME_SAMPLES,
    SPEAKERS,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    Activity,
    Embedding,
)
from localwhisper_server.types import SAMPLE_RATE, Samples

VOICES = 8


def voice(*who: int, seconds: float = 1.0) -> Samples:
    """Return samples in which these speakers, of 0 to 7, speak at once; none: silence."""
    return np.full(round(seconds * SAMPLE_RATE), sum(1 << speaker for speaker in who) / 256, np.float32)


class NetworksDouble:
    """Hears in the middle of each frame who speaks; a voice's embedding is its unit vector.

    It keeps how long each embedded sound was and the first voice of each window (-1: none), and waits in `activity`
    while `gate` is closed.
    """

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.embedded: list[float] = []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()

    def activity(self, window: Samples) -> Activity:
        """Give each speaker of the window a column, in the order of their numbers."""
        assert window.shape == (WINDOW_SAMPLES,)
        heard = _bits(window[495 : 495 + WINDOW_FRAMES * FRAME_SAMPLES : FRAME_SAMPLES])
        self.heard.append(next(iter(np.flatnonzero(heard.any(axis=0)).tolist()), -1))
        self.entered.release()
        assert self.gate.wait(60.0)
        found = np.zeros((WINDOW_FRAMES, SPEAKERS), np.float32)
        for column, speaker in enumerate(np.flatnonzero(heard.any(axis=0))[:SPEAKERS]):
            found[:, column] = heard[:, speaker]
        return found

    def embedding(self, samples: Samples) -> Embedding:
        """Return the mean of who speaks."""
        assert samples.size
        self.embedded.append(samples.size / SAMPLE_RATE)
        total = _bits(samples).sum(axis=0).astype(np.float32)
        unit: Embedding = total / max(float(np.linalg.norm(total)), 1e-9)
        return unit


def _bits(samples: Samples) -> np.ndarray:
    values = np.round(samples * 256).astype(int)
    return (values[:, None] >> np.arange(VOICES)) & 1 == 1
