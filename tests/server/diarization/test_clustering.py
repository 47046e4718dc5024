from __future__ import annotations

import numpy as np
import pytest

from localwhisper_server.diarization import clustering
from localwhisper_server.diarization.clustering import cluster
from localwhisper_server.diarization.windows import Voice


def _near(angle: float, seconds: float = 10.0, window: int = 0, speaker: int = 0) -> Voice:
    """Return a voice at an angle in degrees: the cosine of the difference is the similarity."""
    at = np.radians(angle)
    return Voice(window, speaker, seconds, np.array([np.cos(at), np.sin(at)], np.float32))


def _labels(*voices: Voice, **how: object) -> list[int]:
    return cluster(voices, **how).labels.tolist()  # type: ignore[arg-type]


def test_similar_voices_are_one_speaker() -> None:
    """Two groups, apart by more than the threshold."""
    first, second, third, fourth = _labels(*(_near(angle, window=at) for at, angle in enumerate((0, 90, 10, 100))))
    assert first == third != second == fourth


def test_two_speakers_find_their_own_in_the_next_window() -> None:
    """Each is nearest to itself, though one's second voice is near to the other's first."""
    voices = [_near(0, window=0), _near(66, window=0, speaker=1), _near(30, window=1), _near(96, window=1, speaker=1)]
    assert _labels(*voices) == [0, 1, 0, 1]


def test_voices_of_one_window_that_are_very_similar_are_one_speaker() -> None:
    """The network sometimes hears two where one speaks."""
    assert _labels(_near(0, window=0), _near(20, window=0, speaker=1), _near(10, window=1)) == [0, 0, 0]


def test_short_voices_found_no_speaker() -> None:
    """A voice that is heard too briefly goes to the nearest speaker, but not to that of its own window."""
    assert _labels(_near(0, window=0), _near(0, window=1), _near(80, 0.5, window=2)) == [0, 0, 0]
    assert set(_labels(_near(0, window=0), _near(90, window=1), _near(20, 0.5, 1, 1))) == {0, 1}


def test_a_little_speech_makes_no_speaker() -> None:
    """A cluster under LEAST_CLUSTER_SECONDS goes to the nearest; a recording that short keeps its one speaker."""
    assert _labels(_near(0, 20, 0), _near(90, 20, 1), _near(140, 4, 2)) == [0, 1, 1]
    assert _labels(_near(0, 2)) == [0]
    assert _labels(_near(0, 4), _near(90, 2, 0, 1)) == [0, 1]
    assert cluster([]).count == 0


def test_references_are_never_one_speaker() -> None:
    """Two similar references stay apart, and each voice goes to the nearer."""
    references = [_near(0).embedding, _near(20).embedding]
    found = cluster([_near(1, window=0), _near(19, window=1)], references=references)
    assert (found.labels.tolist(), found.count) == ([0, 1], 2)


def test_two_known_speakers_with_similar_voices_stay_two() -> None:
    """What is said by one is nearer to its own reference than to the other's, though all voices are similar."""
    voices = [_near(angle, window=at) for at, angle in enumerate((0, 2, 20, 22))]
    assert cluster(voices).count == 1
    references = [_near(1).embedding, _near(21).embedding]
    assert cluster(voices, references=references).labels.tolist() == [0, 0, 1, 1]


def test_a_reference_that_nobody_resembles_much_is_the_most_similar_speaker() -> None:
    """Down to KNOWN_MARGIN under the threshold; a stranger stays a stranger."""
    angle = np.degrees(np.arccos(clustering.SIMILAR - clustering.KNOWN_MARGIN))
    voices = [_near(0, window=0), _near(0, window=1)]
    assert cluster(voices, references=[_near(angle - 3).embedding]).labels.tolist() == [0, 0]
    assert cluster(voices, references=[_near(angle + 3).embedding]).labels.tolist() == [1, 1]


@pytest.mark.parametrize(("most", "count"), [(None, 4), (4, 4), (3, 3), (2, 2), (1, 1)])
def test_most(most: int | None, count: int) -> None:
    """The most similar are merged until there are no more than allowed."""
    vectors = np.eye(4, dtype=np.float32)
    voices = [Voice(at, 0, 10.0, vector) for at, vector in enumerate(vectors)]
    assert cluster(voices, most=most).count == count


def test_most_does_not_merge_references() -> None:
    """With as many references as allowed, everyone else is one of them."""
    vectors = np.eye(4, dtype=np.float32)
    found = cluster([Voice(at, 0, 10.0, vector) for at, vector in enumerate(vectors)], references=vectors[:2], most=2)
    assert found.count == 2
    assert found.labels[:2].tolist() == [0, 1]


def test_many_voices_are_bounded() -> None:
    """Of a recording of many hours, the longest voices found the speakers, and all get one."""
    rng = np.random.default_rng(0)
    who = rng.integers(0, 3, 3000)
    vectors = np.eye(3, dtype=np.float32)[who] + rng.normal(0, 0.1, (3000, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = cluster([Voice(at, 0, 3.0, vector) for at, vector in enumerate(vectors)])
    assert found.count == 3
    names = {label: who[found.labels == label] for label in range(3)}
    assert all(len(set(members)) == 1 for members in names.values())
