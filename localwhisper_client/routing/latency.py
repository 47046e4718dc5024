"""How long a call would wait at one backend: the queue that the server reported, and how long other calls took."""

from __future__ import annotations

import threading

# Seconds for which a measurement counts. After that a server that was slow once is tried again.
_VALID = 60.0
# Latencies are kept for this many seconds of audio, the length of a common voice message.
_USUAL = 10.0
# The weight of the newest call in the running mean.
_WEIGHT = 0.3


class LatencyEstimate:
    """One backend's expected latency; thread-safe. Times are in seconds; `now` is from any one monotonic clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency = 0.0
        self._measured_at = float("-inf")
        self._queue = 0.0
        self._reported_at = float("-inf")
        self._in_flight = 0

    def began(self) -> None:
        """Count a call that was sent."""
        with self._lock:
            self._in_flight += 1

    def ended(self) -> None:
        """Count a call that has ended, whatever its outcome."""
        with self._lock:
            self._in_flight -= 1

    def answered(self, seconds: float, audio_seconds: float | None, now: float) -> None:
        """Take in how long an answer took, and for how much audio.

        A longer recording's time is scaled down to that of a usual message. A shorter one's time is taken as it is, and
        so is one of unknown length.
        """
        seconds *= _USUAL / max(audio_seconds or 0.0, _USUAL)
        with self._lock:
            known = now - self._measured_at < _VALID
            self._latency += (seconds - self._latency) * (_WEIGHT if known else 1.0)
            self._measured_at = now

    def queued(self, seconds: float, now: float) -> None:
        """Take in the waiting time that the server reported."""
        with self._lock:
            self._queue, self._reported_at = seconds, now

    def expected(self, now: float) -> float:
        """Return the seconds that a usual message sent now would take, to a tenth: smaller differences are noise."""
        with self._lock:
            latency = self._latency if now - self._measured_at < _VALID else 0.0
            # The reported queue shrinks by a second each second.
            queue = max(0.0, self._queue - (now - self._reported_at)) if self._queue else 0.0
            return round(queue + latency * (1 + self._in_flight), 1)
