"""Which backend a call tries next: a generator without I/O that two short drivers carry out.

`plan()` yields a step and is sent what came of it, until it returns an `Ending`:

| step | the driver does | and sends |
|---|---|---|
| `Try(backend, seconds)` | sends the call to that backend | its `Outcome` |
| `Wait(seconds)` | sleeps | `None` |
| `Probe(backend, wait=False)` | starts asking the backend's health, in the background | `None` |
| `Probe(backend, wait=True)` | asks the backend's health and waits for the answer | whether it is well |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from localwhisper_client.circuit import Breaker, Signal, State
from localwhisper_client.events import Attempt, BreakerClosed, BreakerOpened, Event, Fallback
from localwhisper_client.policy import Policy

FIRST_BACKOFF = 0.25
LONGEST_BACKOFF = 15.0
# A server that says "come back in 0 seconds" again and again is not to be hammered.
SHORTEST_BUSY_WAIT = 0.05


class Verdict(StrEnum):
    """What a backend's behaviour means for the call."""

    ANSWERED = "answered"
    OUTAGE = "outage"
    """Nobody there: the breaker opens at once; next backend."""
    FAILURE = "failure"
    """Somebody there who failed: the breaker counts; next backend."""
    BUSY = "busy"
    """Well, but full: the breaker stays as it is; wait if the answer says how long, else next backend."""
    MISCONFIGURED = "misconfigured"
    """Wrong key, wrong address: raised, never hidden behind the cloud."""
    CALLER = "caller"
    """The call itself is wrong: raised, never paid for a second time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of trying one backend."""

    verdict: Verdict
    reason: str = ""
    retry_after: float | None = None
    """Seconds after which a busy backend wants to be asked again; `None` when it did not say."""
    value: object = None
    """The answer."""
    error: Exception | None = None


@dataclass(frozen=True, eq=False)
class Backend:
    """Somebody who can transcribe, and what is known of their health."""

    name: str
    """The base URL, without credentials."""
    cloud: bool = False
    breaker: Breaker = field(default_factory=Breaker)

    def learn(self, signal: Signal, now: float, reason: str, announce: Announce) -> None:
        """Tell the breaker, and tell the world if that opened or closed it."""
        before, after = self.breaker.signal(signal, now)
        if after.state is State.OPEN and before.state is State.CLOSED:
            announce(BreakerOpened(self.name, reason))
        elif after.state is State.CLOSED and before.state is not State.CLOSED:
            announce(BreakerClosed(self.name))


@dataclass(frozen=True, slots=True)
class Tried:
    """One line of a call's history."""

    backend: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended: in an answer if the outcome's verdict is so, else in an error."""

    outcome: Outcome
    tried: tuple[Tried, ...]
    policy: Policy
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Try:
    """Send the call to this backend."""

    backend: Backend
    seconds: float | None
    """How long the backend may be silent; `None` for ever."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask after the backend's health, without the user's audio."""

    backend: Backend
    wait: bool


Announce: TypeAlias = Callable[[Event], None]
Step: TypeAlias = Try | Wait | Probe
Reply: TypeAlias = Outcome | bool | None
Plan: TypeAlias = Generator[Step, Reply, Ending]

_SIGNALS = {
    Verdict.ANSWERED: Signal.ANSWERED,
    Verdict.MISCONFIGURED: Signal.ANSWERED,
    Verdict.CALLER: Signal.ANSWERED,
    Verdict.OUTAGE: Signal.OUTAGE,
    Verdict.FAILURE: Signal.FAILURE,
}
_FINAL = frozenset({Verdict.ANSWERED, Verdict.MISCONFIGURED, Verdict.CALLER})


@dataclass
class Call:
    """One call on its way through the backends."""

    house: Sequence[Backend]
    cloud: Backend
    policy: Policy
    seconds: float | None
    """The call's whole time, from now; `None` when it has no deadline."""
    clock: Callable[[], float]
    jitter: Callable[[], float]
    """Random numbers in [0, 1)."""
    announce: Announce
    tried: list[Tried] = field(default_factory=list)
    last: Outcome = field(default_factory=lambda: Outcome(Verdict.OUTAGE, "no backend could be tried"))

    def __post_init__(self) -> None:
        self.deadline = math.inf if self.seconds is None else self.clock() + self.seconds

    def plan(self) -> Plan:
        """Yield steps, be sent replies, return how the call ended."""
        rounds = 0
        while True:
            yield from self._ask_house()
            if self.last.verdict in _FINAL:
                return self._ending()
            if self.policy.leaves_house:
                if self._left() <= 0:
                    return self._ending(timed_out=True)
                self.announce(Fallback(self.cloud.name, self.last.reason))
                yield from self._try(self.cloud, self._left())
                return self._ending()
            if self.policy is not Policy.WAIT:
                return self._ending(timed_out=self._left() <= 0)
            pause = backoff(rounds, self.jitter())
            rounds += 1
            if pause >= self._left():
                return self._ending(timed_out=True)
            yield Wait(pause)

    def _ask_house(self) -> Generator[Step, Reply]:
        skipped: list[Backend] = []
        for backend in self.house:
            if not backend.breaker.lets_pass():
                skipped.append(backend)
                continue
            yield from self._try_until_told(backend)
            if self.last.verdict in _FINAL:
                break
        alone = not self.policy.leaves_house and self.last.verdict not in _FINAL
        for backend in skipped:
            if not alone:
                # Somebody else takes the call, so nobody waits for the probe.
                if backend.breaker.claims_probe(self.clock()):
                    yield Probe(backend, wait=False)
                if self.last.verdict not in _FINAL:
                    self._note(backend, Outcome(Verdict.OUTAGE, "down a moment ago, not asked again yet"))
                continue
            # Nobody else may take the call: better to ask now than to refuse because of what was true a moment ago.
            if (yield Probe(backend, wait=True)):
                yield from self._try_until_told(backend)
                if self.last.verdict in _FINAL:
                    return
            else:
                self._note(backend, Outcome(Verdict.OUTAGE, "down a moment ago, and still not well"))

    def _try_until_told(self, backend: Backend) -> Generator[Step, Reply]:
        """Try a backend; while it is busy and says for how long, wait for it if the deadline allows."""
        shortest = SHORTEST_BUSY_WAIT
        while True:
            # Half of what is left is kept for the others, where there are others.
            others = self.policy.leaves_house or backend is not self.house[-1]
            yield from self._try(backend, self._left() / 2 if others else self._left())
            if self.last.verdict is not Verdict.BUSY or self.last.retry_after is None:
                return
            pause = max(self.last.retry_after, shortest)
            if pause >= self._left():
                return
            shortest = min(shortest * 2, LONGEST_BACKOFF)
            yield Wait(pause)

    def _try(self, backend: Backend, seconds: float) -> Generator[Step, Reply]:
        started = self.clock()
        outcome = yield Try(backend, None if seconds == math.inf else max(seconds, 0.001))
        if not isinstance(outcome, Outcome):
            raise TypeError(f"a Try is answered with an Outcome, not with {outcome!r}")
        now = self.clock()
        self._note(backend, outcome)
        self.announce(Attempt(backend.name, outcome.verdict.value, outcome.reason, now - started, backend.cloud))
        if outcome.verdict in _SIGNALS:
            backend.learn(_SIGNALS[outcome.verdict], now, outcome.reason, self.announce)

    def _note(self, backend: Backend, outcome: Outcome) -> None:
        self.last = outcome
        line = Tried(backend.name, outcome.verdict, outcome.reason)
        # A call that waits meets the same trouble again and again; its history says it once.
        if line not in self.tried:
            self.tried.append(line)

    def _left(self) -> float:
        return self.deadline - self.clock()

    def _ending(self, *, timed_out: bool = False) -> Ending:
        return Ending(self.last, tuple(self.tried), self.policy, timed_out)


def backoff(round_: int, jitter: float) -> float:
    """Return the seconds to wait after the given round, from 0: doubled each time, capped, less up to a quarter."""
    return float(min(FIRST_BACKOFF * 2.0 ** min(round_, 32), LONGEST_BACKOFF) * (1 - 0.25 * jitter))
