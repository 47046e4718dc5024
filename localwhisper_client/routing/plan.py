"""Which backend a call tries next: a generator without I/O, and the words it shares with its two drivers.

`Call.plan()` yields a step and is sent the reply to it, until it returns an `Ending`:

| step | the driver | and sends |
|---|---|---|
| `Try(backend, seconds)` | sends the call to that backend | its `Outcome` |
| `Wait(seconds)` | sleeps | `None` |
| `Probe(backend, seconds)` | asks whether the backend is ready; 0 seconds: without waiting | whether it is |
| `Find(lost, seconds)` | finds the local servers by mDNS, again if a found one was `lost` | a tuple of backends |
| `Wake(seconds)` | wakes the local server's machine | whether a packet was sent |

`seconds` is the most that a driver may spend on a step, `None` for no limit. A step that is not done by then goes on in
the background, and the driver sends `False`, or the backends that are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from localwhisper_client.events import Attempt, Fallback, LastCall
from localwhisper_client.routing.backend import Announce, Backend, Signal
from localwhisper_client.routing.policy import Policy

FIRST_BACKOFF = 0.25
LONGEST_BACKOFF = 15.0
# The least pause between two tries of a busy server, even if it asks for 0 seconds.
SHORTEST_BUSY_WAIT = 0.05


class Verdict(StrEnum):
    """What a backend's behaviour means for the call, the breaker and the next backend; see `events.Attempt`."""

    ANSWERED = "answered"
    OUTAGE = "outage"
    FAILURE = "failure"
    BUSY = "busy"
    MISCONFIGURED = "misconfigured"
    BAD_REQUEST = "bad_request"
    REFUSED = "refused"


FINAL = frozenset({Verdict.ANSWERED, Verdict.MISCONFIGURED, Verdict.BAD_REQUEST})
"""The verdicts that end a call."""

_SIGNALS = {
    Verdict.ANSWERED: Signal.ANSWERED,
    Verdict.MISCONFIGURED: Signal.ANSWERED,
    Verdict.BAD_REQUEST: Signal.ANSWERED,
    Verdict.OUTAGE: Signal.OUTAGE,
    Verdict.FAILURE: Signal.FAILURE,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one attempt at one backend."""

    verdict: Verdict
    reason: str = ""
    retry_after: float | None = None
    """Seconds after which a busy backend may be tried again; `None` if it did not say."""
    value: object = None
    """The answer."""
    error: Exception | None = None
    queue_seconds: float | None = None
    """How long the server says that its next call will wait."""
    audio_seconds: float | None = None
    """The length of the audio, if the answer or the file tells it."""
    cost_usd: float | None = 0.0
    """What the attempt cost; `None` if unknown."""
    may_pass: bool = False
    """Whether the cloud may be asked again in this call. A local server has its breaker for that."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One line of a call's history, for the error message."""

    backend: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended: with an answer if the outcome's verdict says so, else with an error."""

    outcome: Outcome
    tried: tuple[Tried, ...]
    policy: Policy
    timed_out: bool
    summary: LastCall


@dataclass(frozen=True, slots=True)
class Try:
    """Send the call to this backend."""

    backend: Backend
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask whether the backend is ready, without the user's audio."""

    backend: Backend
    seconds: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Find:
    """Find the local servers."""

    lost: bool
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake the local server's machine."""

    seconds: float | None = None


Step: TypeAlias = Try | Wait | Probe | Find | Wake
Reply: TypeAlias = Outcome | tuple[Backend, ...] | bool | None
Plan: TypeAlias = Generator[Step, Reply, Ending]
_Part: TypeAlias = Generator[Step, Reply]


@dataclass
class Call:
    """One call: the backends it may use, its deadline, and what has happened so far."""

    servers: Sequence[Backend]
    """The local servers, in the order in which the user named them."""
    cloud: Backend
    policy: Policy
    seconds: float | None
    """The time for the whole call, from now; `None` for no deadline."""
    clock: Callable[[], float]
    jitter: Callable[[], float]
    """Random numbers in [0, 1)."""
    announce: Announce
    finds: bool = False
    """Whether a `Find` gives the local servers."""
    wakes: bool = False
    """Whether there is a machine to wake."""
    cloud_retries: int = 0
    """How often the cloud is asked again after a fault that may pass."""
    measures: bool = True
    """Whether the time of an answer tells how long a backend takes to transcribe."""
    tried: list[Tried] = field(default_factory=list)
    last: Outcome = field(default_factory=lambda: Outcome(Verdict.OUTAGE, "no backend could be tried"))

    def __post_init__(self) -> None:
        self.started = self.clock()
        self.deadline = math.inf if self.seconds is None else self.started + self.seconds
        self.last_backend: Backend | None = None
        self.reason = ""
        self.attempts = 0
        self.cost: float | None = 0.0
        self.lost = False

    def plan(self) -> Plan:
        """Yield steps, be sent replies, return how the call ended."""
        rounds = 0
        awake = False
        while True:
            yield from self._ask_local()
            if self._over():
                return self._ending()
            if self.wakes and not awake and self.last.verdict is Verdict.OUTAGE:
                awake = True
                yield Wake(self._seconds(self._left()))
            if self.policy.leaves_lan:
                if self._left() <= 0:
                    return self._ending(timed_out=True)
                self.announce(Fallback(self.cloud.name, self.last.reason))
                yield from self._ask_cloud()
                return self._ending()
            if self.policy is not Policy.WAIT:
                return self._ending(timed_out=self._left() <= 0)
            pause = backoff(rounds, self.jitter())
            rounds += 1
            if pause >= self._left():
                return self._ending(timed_out=True)
            yield Wait(pause)

    def _ask_cloud(self) -> _Part:
        """Try the cloud, and retry a fault that may pass as often as `max_retries` and the deadline allow."""
        for number in range(self.cloud_retries + 1):
            yield from self._try(self.cloud, self._left())
            pause = self.last.retry_after
            pause = backoff(number, self.jitter()) if pause is None else max(pause, SHORTEST_BUSY_WAIT)
            if not self.last.may_pass or number == self.cloud_retries or pause >= self._left():
                return
            yield Wait(pause)

    def _over(self) -> bool:
        return self.last.verdict in FINAL

    def _ask_local(self) -> _Part:
        if not self.finds:
            yield from self._ask(self.servers)
            return
        yield from self._find()
        known = set(self.servers)
        yield from self._ask(self.servers)
        if self.lost and not self._over():
            # A server that cannot be reached may have a new address.
            yield from self._find()
            yield from self._ask([backend for backend in self.servers if backend not in known])

    def _find(self) -> _Part:
        found = yield Find(self.lost, self._seconds(self._left()))
        if not isinstance(found, tuple):
            raise TypeError(f"a Find is answered with a tuple of backends, not with {found!r}")
        self.servers, self.lost = found, False
        if not found:
            self._note(Backend("auto"), Outcome(Verdict.OUTAGE, "no server was found on the LAN"))

    def _ask(self, backends: Sequence[Backend]) -> _Part:
        """Try the servers with a closed breaker, the fastest first; then probe those with an open one."""
        passing = [backend for backend in backends if backend.breaker.allows_calls()]
        skipped = [backend for backend in backends if backend not in passing]
        now = self.clock()
        passing.sort(key=lambda backend: backend.latency.expected(now))
        yield from self._try_each(passing, others=bool(skipped))
        alone = not self.policy.leaves_lan and not self._over()
        for backend in skipped:
            if not alone:
                # Another backend takes the call, so the call does not wait for the probe.
                if backend.breaker.claims_probe(self.clock()):
                    yield Probe(backend)
                if not self._over():
                    self._note(backend, Outcome(Verdict.OUTAGE, "down a moment ago, not asked again yet"))
                continue
            # No other backend can take the call, so it waits for the probe rather than trust an old failure.
            last = backend is skipped[-1]
            seconds = self._seconds(self._left() if last else self._left() / 2)
            if (yield Probe(backend, seconds)) and self._left() > 0:
                yield from self._try_each([backend], others=not last)
                if self._over():
                    return
            else:
                self._note(backend, Outcome(Verdict.OUTAGE, "down a moment ago, and not ready now"))

    def _try_each(self, backends: Sequence[Backend], *, others: bool) -> _Part:
        """Try backends in turn, then those again that were busy and said for how long, if the deadline allows it.

        `others` says whether more local servers are left to try after these.
        """
        ready: dict[Backend, float] = {}
        shortest = SHORTEST_BUSY_WAIT
        queue = list(backends)
        while queue:
            backend = queue.pop(0)
            # While other backends are left, half of the remaining time is kept for them.
            last = not (queue or others or self.policy.leaves_lan)
            yield from self._try(backend, self._left() if last else self._left() / 2)
            if self._over():
                return
            if self.last.verdict is Verdict.BUSY and self.last.retry_after is not None:
                ready[backend] = self.clock() + max(self.last.retry_after, shortest)
            if not queue and ready:
                soonest = min(ready, key=ready.__getitem__)
                pause = max(0.0, ready.pop(soonest) - self.clock())
                if pause >= self._left():
                    return
                shortest = min(shortest * 2, LONGEST_BACKOFF)
                yield Wait(pause)
                queue.append(soonest)

    def _try(self, backend: Backend, seconds: float) -> _Part:
        started = self.clock()
        backend.latency.began()
        try:
            outcome = yield Try(backend, self._seconds(seconds))
        finally:
            backend.latency.ended()
        if not isinstance(outcome, Outcome):
            raise TypeError(f"a Try is answered with an Outcome, not with {outcome!r}")
        self._learn(backend, outcome, self.clock() - started)

    def _learn(self, backend: Backend, outcome: Outcome, seconds: float) -> None:
        now = self.clock()
        self.attempts += outcome.verdict is not Verdict.REFUSED
        self.cost = None if self.cost is None or outcome.cost_usd is None else self.cost + outcome.cost_usd
        self.last_backend = backend
        self.lost |= outcome.verdict is Verdict.OUTAGE
        self._note(backend, outcome)
        left_lan = backend.cloud and outcome.verdict is not Verdict.REFUSED
        self.announce(Attempt(backend.name, outcome.verdict.value, outcome.reason, seconds, left_lan, outcome.cost_usd))
        if outcome.verdict in _SIGNALS and not backend.cloud:
            backend.learn(_SIGNALS[outcome.verdict], now, outcome.reason, self.announce)
        if outcome.verdict is Verdict.ANSWERED and self.measures:
            backend.latency.answered(seconds, outcome.audio_seconds, now)
        if outcome.queue_seconds is not None:
            backend.latency.queued(outcome.queue_seconds, now)

    @staticmethod
    def _seconds(seconds: float) -> float | None:
        return None if seconds == math.inf else max(seconds, 0.001)

    def _note(self, backend: Backend, outcome: Outcome) -> None:
        if outcome.verdict is not Verdict.ANSWERED:
            self.reason = outcome.reason
        self.last = outcome
        line = Tried(backend.name, outcome.verdict, outcome.reason)
        # Under `wait` the same fault comes again and again; the history has it once.
        if line not in self.tried:
            self.tried.append(line)

    def _left(self) -> float:
        return self.deadline - self.clock()

    def _ending(self, *, timed_out: bool = False) -> Ending:
        summary = LastCall(
            backend=self.last_backend.name if self.last_backend else "",
            cloud=self.last_backend is self.cloud,
            reason=self.reason,
            seconds=self.clock() - self.started,
            cost=self.cost,
            audio_seconds=self.last.audio_seconds,
            attempts=self.attempts,
        )
        return Ending(self.last, tuple(self.tried), self.policy, timed_out, summary)


def backoff(round_: int, jitter: float) -> float:
    """Return the seconds to wait after the given round, from 0: doubled each time, capped, less up to a quarter."""
    return float(min(FIRST_BACKOFF * 2.0 ** min(round_, 32), LONGEST_BACKOFF) * (1 - 0.25 * jitter))
