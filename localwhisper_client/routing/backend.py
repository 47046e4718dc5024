"""A backend and what is known of it: its breaker, and how long a call would wait there.

The breaker is a pure transition function with a lock around its current state:

```
            outage, or the last failure allowed
    closed ────────────────────────────────────▶ open ◀──────┐
      ▲ ▲                                         │ cooldown  │ probe failed
      │ │ answered                                ▼ is over   │
      │ └───────────────────────────────────── half-open ─────┘
      └──────────── probe answered ───────────────┘
```

Calls pass a closed breaker only. A half-open one waits for the answer to its one probe. A probe that is answered closes
the breaker, but the next failure opens it again at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TypeAlias

from localwhisper_client.events import BreakerClosed, BreakerOpened, Event

Announce: TypeAlias = Callable[[Event], None]

# Seconds for which a measurement counts. After that a server that was slow once is tried again.
_VALID = 60.0
# Latencies are kept for this many seconds of audio, the length of a common voice message.
_USUAL = 10.0
# The weight of the newest call in the running mean.
_WEIGHT = 0.3


class State(Enum):
    """Whether calls go to the backend: only while the breaker is closed."""

    CLOSED = auto()
    OPEN = auto()
    HALF_OPEN = auto()


class Signal(Enum):
    """What happened at the backend, or is about to."""

    ANSWERED = auto()
    """It answered a call, possibly with an error that is the caller's."""
    OUTAGE = auto()
    """It could not be reached."""
    FAILURE = auto()
    """It was reached and failed."""
    PROBE = auto()
    """A call wants to probe it."""
    PROBE_ANSWERED = auto()
    PROBE_FAILED = auto()


@dataclass(frozen=True, slots=True)
class Rules:
    """How many failures open a breaker, and how long it stays open; durations in seconds."""

    failures: int = 3
    cooldown: float = 2.0
    longest_cooldown: float = 30.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """The state of a breaker at one moment."""

    state: State = State.CLOSED
    failures: int = 0
    """Failures in a row, while closed."""
    openings: int = 0
    """Times opened since the last answered call: each doubles the cooldown."""
    retry_at: float = 0.0
    """When an open breaker may be probed, on the clock that `now` is read from."""


def after(circuit: Circuit, signal: Signal, now: float, rules: Rules) -> Circuit:  # noqa: PLR0911 - a row each
    """Return the breaker's next state: the whole of its transition table."""
    match circuit.state, signal:
        case _, Signal.ANSWERED:
            return Circuit()
        case State.CLOSED, Signal.OUTAGE:
            return _opened(circuit, now, rules)
        case State.CLOSED, Signal.FAILURE:
            failures = circuit.failures + 1
            return _opened(circuit, now, rules) if failures >= rules.failures else replace(circuit, failures=failures)
        case ((State.OPEN | State.HALF_OPEN), Signal.PROBE) if now >= circuit.retry_at:
            # The claim runs out, since a probe may be lost with its thread (a fork, a kill).
            return replace(circuit, state=State.HALF_OPEN, retry_at=now + rules.longest_cooldown)
        case ((State.OPEN | State.HALF_OPEN), Signal.PROBE_ANSWERED):
            return replace(circuit, state=State.CLOSED, failures=rules.failures - 1)
        case State.HALF_OPEN, Signal.PROBE_FAILED:
            return _opened(circuit, now, rules)
        case _:
            # The backend is already known to be down, or a call was answered before the probe.
            return circuit


def _opened(circuit: Circuit, now: float, rules: Rules) -> Circuit:
    # The exponent is bounded because a server may be off for months, and 2.0 ** 1100 is an error.
    cooldown = min(rules.cooldown * 2.0 ** min(circuit.openings, 32), rules.longest_cooldown)
    return Circuit(State.OPEN, failures=0, openings=circuit.openings + 1, retry_at=now + cooldown)


class Breaker:
    """One backend's breaker, shared by threads and tasks."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        self._circuit = Circuit()
        self._lock = threading.Lock()

    @property
    def circuit(self) -> Circuit:
        """The current state."""
        return self._circuit

    def allows_calls(self) -> bool:
        """Whether a call may go to the backend."""
        return self._circuit.state is State.CLOSED

    def signal(self, signal: Signal, now: float) -> tuple[Circuit, Circuit]:
        """Change the state by a signal; return the states before and after."""
        with self._lock:
            before = self._circuit
            self._circuit = after(before, signal, now, self._rules)
            return before, self._circuit

    def claims_probe(self, now: float) -> bool:
        """Whether the cooldown is over and this caller, and no other, should probe now."""
        before, circuit = self.signal(Signal.PROBE, now)
        return circuit is not before


class LatencyEstimate:
    """How long a call would wait at one backend; thread-safe.

    It adds the queue that the server reported to the time that other calls took. Times are in seconds; `now` is from
    any one monotonic clock.
    """

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


@dataclass(frozen=True, eq=False)
class Backend:
    """A server that can transcribe, and what is known of its health."""

    name: str
    """The base URL, without credentials."""
    cloud: bool = False
    breaker: Breaker = field(default_factory=Breaker)
    latency: LatencyEstimate = field(default_factory=LatencyEstimate)

    def learn(self, signal: Signal, now: float, reason: str, announce: Announce) -> None:
        """Pass a signal to the breaker, and announce it if that opened or closed it."""
        before, after = self.breaker.signal(signal, now)
        if after.state is State.OPEN and before.state is State.CLOSED:
            announce(BreakerOpened(self.name, reason))
        elif after.state is State.CLOSED and before.state is not State.CLOSED:
            announce(BreakerClosed(self.name))
