"""Who is active at each moment of a recording, from the windows' activities and the voices' clusters. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localwhisper_server.diarization.clustering import Clusters
from localwhisper_server.diarization.networks import WINDOW_FRAMES
from localwhisper_server.diarization.windows import ACTIVE, FRAME_SECONDS, STEP_FRAMES, Window

# The centre of a frame, which is seen with 991 samples, lies this far behind its start.
CENTRE_SECONDS = 991 / 2 / 16_000
# Shorter pauses of a speaker do not end a turn, and shorter turns are none.
BRIDGED_SECONDS = 0.5
LEAST_TURN_SECONDS = 0.2
# A part of a voice's speech is another speaker's if it is so much more similar to that one. Chosen on 12 mixes of eight
# English speakers of the corpus, none of whom is reported on; anything from 0 to 0.3 gave nearly the same.
OTHER_MARGIN = 0.1


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
    def of(cls, windows: Sequence[Window], found: Clusters) -> "Timeline":
        """Average the windows over each frame; `found` has the speaker of each of their voices, in order."""
        frames = (len(windows) - 1) * STEP_FRAMES + WINDOW_FRAMES if windows else 0
        scores = np.zeros((frames, found.count), np.float32)
        weights = np.zeros((frames, 1), np.float32)
        # A window knows least about its edges, where it hears only what comes before or after.
        weight = np.hanning(WINDOW_FRAMES + 2)[1:-1, None].astype(np.float32) + np.float32(0.01)
        labels = iter(found.labels)
        speakers = [
            {voice.speaker: int(label) for voice, label in zip(window.voices, labels, strict=False)}
            for window in windows
        ]
        for window, labelled in zip(windows, speakers, strict=True):
            first = window.number * STEP_FRAMES
            weights[first : first + WINDOW_FRAMES] += weight
            for column, label in labelled.items():
                activity = window.activity[:, [column]].astype(np.float32)
                scores[first : first + WINDOW_FRAMES, [label]] += activity * weight
        scores /= np.maximum(weights, np.float32(1e-6))
        for window, labelled in zip(windows, speakers, strict=True):
            for column, label in labelled.items():
                _correct(scores[window.number * STEP_FRAMES :], window, column, label, found.centroids)
        return cls(scores)

    def turns(self) -> list[Turn]:
        """Return who speaks when, in order of the starts; turns of different speakers may overlap."""
        found = [Turn(speaker, *span) for speaker in range(self.scores.shape[1]) for span in self._spans(speaker)]
        return sorted(found, key=lambda turn: (turn.start, turn.end))

    def speaker(self, start: float, end: float) -> int | None:
        """Return who is the most active between two times, in seconds, or next to them; None if none ever is.

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


def _correct(
    scores: npt.NDArray[np.float32], window: Window, column: int, label: int, centroids: npt.NDArray[np.float32]
) -> None:
    """Give the frames of a voice's parts that resemble another speaker more to that one; `scores` begin at the window.

    The network takes two speakers for one now and then, mostly where one follows another without a pause.
    """
    parts = [part for part in window.parts if part.speaker == column]
    similar = np.zeros((WINDOW_FRAMES, len(centroids)), np.float32)
    count = np.zeros((WINDOW_FRAMES, 1), np.float32)
    for part in parts:
        similar[part.first : part.last] += centroids @ part.embedding
        count[part.first : part.last] += 1
    similar /= np.maximum(count, 1)
    best = similar.argmax(axis=1)
    other = np.flatnonzero(similar.max(axis=1) - similar[:, label] > OTHER_MARGIN)
    scores[other, best[other]] += scores[other, label]
    scores[other, label] = 0
