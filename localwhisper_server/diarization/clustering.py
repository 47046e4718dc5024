"""Voices of all windows to the speakers of the recording: agglomerative clustering by average cosine similarity. Pure.

Numbers below without another source were chosen on mixes of the readers and prompts that `benchmarks/diarization.py`
calls its tuning speakers; none of the speakers that it reports on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localwhisper_server.diarization.networks import Embedding
from localwhisper_server.diarization.windows import Voice

# Clusters whose voices are on average less similar than this are different speakers.
SIMILAR = 0.5
# Only voices heard for so long found clusters; the others go to the nearest cluster.
FOUNDING_SECONDS = 1.5
# If no speaker is similar enough to a known one, the most similar speaker is taken, up to this much less similar:
# a caller that sends a reference expects that speaker.
KNOWN_MARGIN = 0.2
# At most so many found clusters: 4 MB of similarities, half a second. An hour of talk has about 1,400.
MOST_FOUNDING = 1_000
# A cluster of less speech is merged into the nearest; in a short recording, one of less than a tenth of the speech.
# Windows overlap, so speech is counted twice.
LEAST_CLUSTER_SECONDS = 6.0
LEAST_CLUSTER_SHARE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """`labels` has the cluster of each voice, from 0; the first clusters are those of the `references`.

    `centroids` are the clusters' mean embeddings, of length 1.
    """

    labels: npt.NDArray[np.int64]
    centroids: npt.NDArray[np.float32]

    @property
    def count(self) -> int:
        """How many clusters there are, empty ones of references included."""
        return len(self.centroids)


def cluster(
    voices: Sequence[Voice], *, references: Sequence[Embedding] = (), most: int | None = None, similar: float = SIMILAR
) -> Clusters:
    """Find the speakers of `voices`, at most `most`.

    `references` are voices of known speakers. Cluster i is that of reference i, and may be empty.
    """
    if not voices:
        known = np.array(references, np.float32) if references else np.empty((0, 0), np.float32)
        return Clusters(np.empty(0, np.int64), known)
    founding = _founding(voices)
    groups = _Groups([voices[at] for at in founding], references, most)
    groups.merge_references(similar)
    # The voices of one window are different speakers, as a rule: such clusters are merged last.
    groups.merge_similar(similar)
    groups.forget_windows()
    groups.merge_similar(similar)
    groups.adopt(similar - KNOWN_MARGIN)
    groups.merge_small()
    groups.merge_down()
    centroids = groups.centroids()
    return Clusters(_assigned(voices, centroids), centroids)


def _founding(voices: Sequence[Voice]) -> list[int]:
    """Return which voices found clusters: those that are heard long, or the longest if none is."""
    order = sorted(range(len(voices)), key=lambda at: -voices[at].seconds)
    long = [at for at in order if voices[at].seconds >= FOUNDING_SECONDS]
    return sorted((long or order[:1])[:MOST_FOUNDING])


class _Groups:
    """Clusters that grow: sums of weighted embeddings, whose inner products give average similarities.

    The references come first and are never merged with each other.
    """

    def __init__(self, voices: Sequence[Voice], references: Sequence[Embedding], most: int | None) -> None:
        self._known = len(references)
        self._most = most
        self._found: set[int] = set()  # that have merged with another
        weights = [*(LEAST_CLUSTER_SECONDS for _ in references), *(voice.seconds for voice in voices)]
        vectors = [*references, *(voice.embedding for voice in voices)]
        self._weights = np.array(weights, np.float32)
        self._sums = np.array(vectors, np.float32) * self._weights[:, None]
        windows = np.array([-1] * self._known + [voice.window for voice in voices])
        self._apart = windows[:, None] == windows[None, :]  # who cannot be one speaker
        self._alive = np.ones(len(weights), bool)
        self._similarities = self._sums @ self._sums.T / np.outer(self._weights, self._weights)

    def merge_similar(self, least: float) -> None:
        """Merge the most similar two clusters that may be one speaker until none are at least so similar."""
        scores = np.where(self._apart | ~self._alive[:, None] | ~self._alive, -np.inf, self._similarities)
        while True:
            first, second = sorted(divmod(int(scores.argmax()), len(scores)))
            if scores[first, second] < least:
                return
            self._merge(first, second)
            row = np.where(self._apart[first] | ~self._alive, -np.inf, self._similarities[first])
            row[first] = -np.inf
            scores[first], scores[:, first] = row, row
            scores[second] = scores[:, second] = -np.inf

    def merge_references(self, least: float) -> None:
        """Merge each voice that is at least so similar to a reference with the most similar one.

        Before any others are merged: two known speakers with similar voices would otherwise become one cluster.
        """
        if self._known:
            similarities = self._similarities[: self._known].copy()
            for at in np.flatnonzero(similarities.max(axis=0) >= least)[self._known :]:
                self._merge(int(similarities[:, at].argmax()), int(at))

    def forget_windows(self) -> None:
        """Let voices of one window be merged; references stay apart."""
        self._apart[:] = False
        self._apart[: self._known, : self._known] = True
        np.fill_diagonal(self._apart, val=True)

    def adopt(self, least: float) -> None:
        """Merge each reference to which nothing was similar enough with the most similar cluster, down to `least`."""
        while True:
            unknown = self._unknown()
            lonely = [at for at in range(self._known) if at not in self._found]
            if not lonely or not unknown.size:
                return
            scores = self._similarities[lonely][:, unknown]
            at, to = divmod(int(scores.argmax()), unknown.size)
            if scores[at, to] < least:
                return
            self._merge(lonely[at], int(unknown[to]))

    def merge_small(self) -> None:
        """Merge clusters of little speech into the most similar other, except those of references."""
        least = min(LEAST_CLUSTER_SECONDS, LEAST_CLUSTER_SHARE * float(self._weights[self._alive].sum()))
        while (unknown := self._unknown()).size:
            smallest = int(unknown[self._weights[unknown].argmin()])
            if self._weights[smallest] >= least or self._alive.sum() < 2:  # noqa: PLR2004 - a pair
                return
            self._merge(*self._nearest([smallest]))

    def merge_down(self) -> None:
        """Merge the most similar until there are no more than allowed; references stay."""
        while self._most is not None and self._alive.sum() > self._most and (unknown := self._unknown()).size:
            if self._alive.sum() < 2:  # noqa: PLR2004 - a pair
                return
            self._merge(*self._nearest(unknown))

    def centroids(self) -> npt.NDArray[np.float32]:
        """Return the clusters' mean vectors, of length 1; those of references first."""
        sums = self._sums[self._alive]
        unit: npt.NDArray[np.float32] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        return unit

    def _unknown(self) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self._alive)[self._known :]

    def _nearest(self, among: npt.NDArray[np.int64] | Sequence[int]) -> tuple[int, int]:
        """Return the most similar pair, one of which is `among` some; the lower index first."""
        scores = np.where(self._alive, self._similarities[list(among)], -np.inf)
        scores[np.arange(len(scores)), list(among)] = -np.inf
        at, other = divmod(int(scores.argmax()), scores.shape[1])
        one = int(list(among)[at])
        return min(one, other), max(one, other)

    def _merge(self, first: int, second: int) -> None:
        self._sums[first] += self._sums[second]
        self._weights[first] += self._weights[second]
        self._apart[first] |= self._apart[second]
        self._apart[:, first] = self._apart[first]
        self._alive[second] = False
        self._found.add(first)
        row = self._sums @ self._sums[first] / (self._weights * self._weights[first])
        self._similarities[first], self._similarities[:, first] = row, row


def _assigned(voices: Sequence[Voice], centroids: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the nearest cluster of each voice; voices of one window get different ones where there are enough."""
    similarities = np.array([voice.embedding for voice in voices], np.float32) @ centroids.T
    labels = np.full(len(voices), -1, np.int64)
    windows: dict[int, list[int]] = {}
    for at, voice in enumerate(voices):
        windows.setdefault(voice.window, []).append(at)
    for members in windows.values():
        free = np.ones(len(centroids), bool)
        # The voice that is heard longest chooses first: its embedding is the most reliable.
        for at in sorted(members, key=lambda at: -voices[at].seconds):
            allowed = similarities[at] if not free.any() else np.where(free, similarities[at], -np.inf)
            labels[at] = int(allowed.argmax())
            free[labels[at]] = False
    return labels
