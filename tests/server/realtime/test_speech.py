"""Where somebody speaks."""

from __future__ import annotations

import pytest

from localwhisper_server.realtime.speech import WINDOW, SpeechTracker, Started, Stopped

MS = 16


def follow(pattern: str, **settings: float) -> tuple[SpeechTracker, list[Started | Stopped]]:
    """Track windows: "#" is speech, "." silence, "-" neither."""
    tracker = SpeechTracker(**settings)  # type: ignore[arg-type]
    probability = {"#": 0.9, ".": 0.1, "-": 0.4}
    changes = [tracker.add(probability[sign]) for sign in pattern]
    return tracker, [change for change in changes if change is not None]


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        (".....", []),
        ("..##..##..", []),  # clicks
        ("..###", [Started(2 * WINDOW)]),
        ("..####....", [Started(2 * WINDOW), Stopped(6 * WINDOW)]),
        ("..####...#....", [Started(2 * WINDOW), Stopped(10 * WINDOW)]),
        ("..####---------", [Started(2 * WINDOW)]),  # neither speech nor silence changes anything
        ("..####.-.-....", [Started(2 * WINDOW), Stopped(6 * WINDOW)]),
        ("###....###....", [Started(0), Stopped(3 * WINDOW), Started(7 * WINDOW), Stopped(10 * WINDOW)]),
    ],
)
def test_speech_starts_and_stops(pattern: str, changes: list[Started | Stopped]) -> None:
    """Three windows of speech start it, the silence that is set stops it; each is reported where it began."""
    assert follow(pattern, silence=4 * WINDOW)[1] == changes


def test_a_pause_within_speech_makes_two_spans() -> None:
    """A pause of 160 ms or more, as in a file; a shorter one does not."""
    tracker, _ = follow("###....####......####", silence=100 * WINDOW)
    assert [(span.start // WINDOW, span.end // WINDOW) for span in tracker.spans] == [(0, 11), (17, 21)]
    assert (tracker.quiet_since, tracker.quiet) == (None, 0)


def test_an_interrupted_tracker_starts_again() -> None:
    """Speech that goes on after a commit is a new turn."""
    tracker, _ = follow("####", silence=4 * WINDOW)
    tracker.interrupt()
    assert tracker.spans == []
    assert [tracker.add(0.9) for _ in range(3)] == [None, None, Started(4 * WINDOW)]
