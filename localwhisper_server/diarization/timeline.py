"""Who is active at each moment of a recording, from the windows' activities and the voices' clusters. Pure."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localwhisper_server.diarization.networks import WINDOW_FRAMES
from localwhisper_server.diarization.windows import ACTIVE, FRAME_SECONDS, STEP_FRAMES, Window

# The centre of a frame, which is seen with 991 samples, lies this far behind its start.
CENTRE_SECONDS = 991 / 2 / 16_000
# Shorter pauses of a speaker do not end a turn, and shorter turns are none.
BRIDGED_SECONDS = 0.5
LEAST_TURN_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker's speech from `start` to `end`, in seconds; `speaker` is a column of the timeline."""

    speaker: int
    start: float
    end: float


class Timeline:
    """`scores` is how active each speaker is in each frame, shape (frames, speakers), from 0 to 1."""

    def __init__(self, scores: npt.NDArray[np.float32]) -> None:
        self.scores = scores

    @classmethod
    def of(cls, windows: Sequence[Window], labels: npt.NDArray[np.int64], speakers: int) -> "Timeline":
        """Average the windows over each frame; `labels` has the speaker of each of their voices, in order."""
        frames = (len(windows) - 1) * STEP_FRAMES + WINDOW_FRAMES if windows else 0
        scores = np.zeros((frames, speakers), np.float32)
        weights = np.zeros((frames, 1), np.float32)
        # A window knows least about its edges, where it hears only what comes before or after.
        weight = np.hanning(WINDOW_FRAMES + 2)[1:-1, None].astype(np.float32) + np.float32(0.01)
        voices = iter(labels)
        for window in windows:
            first = window.number * STEP_FRAMES
            weights[first : first + WINDOW_FRAMES] += weight
            for voice, label in zip(window.voices, itertools.islice(voices, len(window.voices)), strict=True):
                activity = window.activity[:, [voice.speaker]].astype(np.float32)
                scores[first : first + WINDOW_FRAMES, [label]] += activity * weight
        scores /= np.maximum(weights, np.float32(1e-6))
        return cls(scores)

    def turns(self) -> list[Turn]:
        """Return who speaks when, in order of the starts; turns of different speakers may overlap."""
        found = [Turn(speaker, *span) for speaker in range(self.scores.shape[1]) for span in self._spans(speaker)]
        return sorted(found, key=lambda turn: (turn.start, turn.end))

    def speaker(self, start: float, end: float) -> int | None:
        """Return who is the most active between two times, in seconds, or next to them; None if nobody ever is.

        Where several speak at once, this is the most probable one: the louder, as a rule.
        """
        if not self.scores.size:
            return None
        first = int(np.clip(_frame(start), 0, len(self.scores) - 1))
        last = int(np.clip(_frame(end) + 1, first + 1, len(self.scores)))
        totals = self.scores[first:last].sum(axis=0)
        if totals.max() < ACTIVE:  # the word's times are a little off, or the network missed it
            active = np.flatnonzero(self.scores.max(axis=1) > ACTIVE)
            if not active.size:
                return None
            nearest = active[np.abs(active - (first + last) / 2).argmin()]
            totals = self.scores[nearest]
        return int(totals.argmax())

    def _spans(self, speaker: int) -> list[tuple[float, float]]:
        active = np.concatenate([[False], self.scores[:, speaker] > ACTIVE, [False]])
        edges = np.flatnonzero(active[1:] != active[:-1])
        spans: list[tuple[float, float]] = []
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            start, end = _seconds(int(first)), _seconds(int(last))
            if spans and start - spans[-1][1] < BRIDGED_SECONDS:
                start = spans.pop()[0]
            spans.append((start, end))
        return [span for span in spans if span[1] - span[0] >= LEAST_TURN_SECONDS]


def _seconds(frame: int) -> float:
    """Return where a frame begins."""
    return max(0.0, frame * FRAME_SECONDS + CENTRE_SECONDS - FRAME_SECONDS / 2)


def _frame(seconds: float) -> int:
    return round((seconds - CENTRE_SECONDS) / FRAME_SECONDS)
