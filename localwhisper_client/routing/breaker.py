"""The breaker of one backend: a pure transition function, and a lock around its current state.

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
from dataclasses import dataclass, replace
from enum import Enum, auto


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
