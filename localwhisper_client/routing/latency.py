"""How long a call would wait at one backend: the queue it told of, and the time that it took for others."""

from __future__ import annotations

import threading

# Seconds after which an estimate is no longer believed: a box that was slow once is asked again, not shunned for ever.
_STALE = 60.0
# Seconds of audio whose transcription is the unit of latency; the length of a common voice message.
_USUAL = 10.0
# How much the newest call counts among those before it.
_WEIGHT = 0.3


class LatencyEstimate:
    """What is known of one backend's speed, shared by threads. Times in seconds; `now` on any one steady clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency = 0.0
        self._measured_at = float("-inf")
        self._queue = 0.0
        self._told_at = float("-inf")
        self._under_way = 0

    def began(self) -> None:
        """Hear that a call was sent."""
        with self._lock:
            self._under_way += 1

    def ended(self) -> None:
        """Hear that one came to its end, whichever."""
        with self._lock:
            self._under_way -= 1

    def answered(self, seconds: float, audio_seconds: float | None, now: float) -> None:
        """Take in how long an answer took, for how much audio.

        The time for an hour-long recording is scaled down to that for a message; below the usual length it is the same
        for any, and where the length is unknown it is taken for usual.
        """
        seconds *= _USUAL / max(audio_seconds or 0.0, _USUAL)
        with self._lock:
            known = now - self._measured_at < _STALE
            self._latency += (seconds - self._latency) * (_WEIGHT if known else 1.0)
            self._measured_at = now

    def queued(self, seconds: float, now: float) -> None:
        """Take in the wait that the server itself foretells."""
        with self._lock:
            self._queue, self._told_at = seconds, now

    def expected(self, now: float) -> float:
        """Return the seconds a message sent now would take: to the tenth, for less than that is noise."""
        with self._lock:
            latency = self._latency if now - self._measured_at < _STALE else 0.0
            # A queue that was told of a while ago has been worked off since.
            queue = max(0.0, self._queue - (now - self._told_at)) if self._queue else 0.0
            return round(queue + latency * (1 + self._under_way), 1)
