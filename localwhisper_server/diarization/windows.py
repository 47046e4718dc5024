"""A recording in overlapping windows: who is active in each, and the embeddings of its voices. Samples are not kept."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localwhisper_server.diarization.networks import (
    FRAME_SAMPLES,
    SPEAKERS,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    Activity,
    Embedding,
    Networks,
)
from localwhisper_server.types import SAMPLE_RATE, Samples

FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
# Windows overlap by half, and begin on a frame, so that the frames of all windows lie on one grid.
STEP_FRAMES = WINDOW_FRAMES // 2 + 2
STEP_SAMPLES = STEP_FRAMES * FRAME_SAMPLES
ACTIVE = 0.5
# Less speech has no embedding that says anything.
LEAST_SECONDS = 0.3
# A voice of which less is heard alone is embedded with the others that overlap it.
LEAST_ALONE_SECONDS = 0.6
# Parts of a voice's speech that are embedded apart, since the network takes two speakers of a window for one now and
# then: overlapping parts of 2 s, or all that is said without a pause, if it is no longer than 3 s.
PART_FRAMES = round(2.0 / FRAME_SECONDS)
LEAST_PART_FRAMES = round(0.8 / FRAME_SECONDS)
PAUSE_FRAMES = 6


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """One speaker of one window: `speaker` is the column of its activity. `seconds` is how long it speaks alone."""

    window: int
    speaker: int
    seconds: float
    embedding: Embedding


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of what column `speaker` of a window says alone, from frame `first` to before `last` of the window."""

    speaker: int
    first: int
    last: int
    embedding: Embedding


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Who is active in window `number`, which begins at frame `number * STEP_FRAMES`.

    `parts` are those of the window's middle half, at the ends of a recording those to its end: each moment of a
    recording is in the parts of one window.
    """

    number: int
    activity: npt.NDArray[np.float16]
    voices: tuple[Voice, ...]
    parts: tuple[Part, ...]


class Windower:
    """Takes a recording block by block, and holds the samples of one window at most, and the block's."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._held = np.empty(0, np.float32)
        self._number = 0
        self._new = False  # whether `_held` has samples that no window had

    def add(self, block: Samples) -> Iterator[Window]:
        """Yield the windows that are complete with the next block."""
        self._held = np.concatenate([self._held, block])
        self._new = self._new or block.size > 0
        while self._held.size >= WINDOW_SAMPLES:
            yield self._window(self._held[:WINDOW_SAMPLES])
            self._new = self._held.size > WINDOW_SAMPLES
            self._held = self._held[STEP_SAMPLES:].copy()

    def end(self) -> Iterator[Window]:
        """Yield the last window, if it has samples that no other window had."""
        if self._new:
            yield self._window(np.pad(self._held, (0, WINDOW_SAMPLES - self._held.size)), last=True)
            self._new = False

    def _window(self, samples: Samples, *, last: bool = False) -> Window:
        activity = self._networks.activity(samples)
        voices, parts = tuple(self._voices(samples, activity)), tuple(self._parts(samples, activity, last=last))
        window = Window(self._number, activity.astype(np.float16), voices, parts)
        self._number += 1
        return window

    def _voices(self, samples: Samples, activity: Activity) -> Iterator[Voice]:
        active = activity > ACTIVE
        alone = active & (active.sum(axis=1) == 1)[:, None]
        for speaker in range(SPEAKERS):
            heard = alone[:, speaker]
            seconds = float(heard.sum()) * FRAME_SECONDS
            if seconds < LEAST_ALONE_SECONDS:
                heard = active[:, speaker]
            if heard.sum() * FRAME_SECONDS >= LEAST_SECONDS:
                # The last samples of a window belong to no frame of their own.
                mask = np.pad(np.repeat(heard, FRAME_SAMPLES), (0, WINDOW_SAMPLES - WINDOW_FRAMES * FRAME_SAMPLES))
                yield Voice(self._number, speaker, seconds, self._networks.embedding(samples[mask]))

    def _parts(self, samples: Samples, activity: Activity, *, last: bool) -> Iterator[Part]:
        active = activity > ACTIVE
        alone = active & (active.sum(axis=1) == 1)[:, None]
        edge = (WINDOW_FRAMES - STEP_FRAMES) / 2
        begin, end = edge if self._number else 0.0, WINDOW_FRAMES - (0.0 if last else edge)
        for speaker in range(SPEAKERS):
            for first, until in _parts_of(alone[:, speaker]):
                if begin <= (first + until) / 2 < end:
                    part = samples[first * FRAME_SAMPLES : until * FRAME_SAMPLES]
                    yield Part(speaker, first, until, self._networks.embedding(part))


def _parts_of(heard: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the first frame of each part, and the one after its last."""
    frames = np.flatnonzero(heard)
    for run in np.split(frames, np.flatnonzero(np.diff(frames) > PAUSE_FRAMES) + 1):
        if run.size < LEAST_PART_FRAMES:
            continue
        first, last = int(run[0]), int(run[-1]) + 1
        rest = last - first - PART_FRAMES
        if rest <= PART_FRAMES // 2:
            yield first, last
            continue
        steps = -(-rest // (PART_FRAMES // 2))
        for step in range(steps + 1):
            start = first + round(rest * step / steps)
            yield start, start + PART_FRAMES
