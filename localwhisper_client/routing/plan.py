"""Which backend a call tries next: a generator without I/O that two short drivers carry out.

`plan()` yields a step and is sent what came of it, until it returns an `Ending`:

| step | the driver does | and sends |
|---|---|---|
| `Try(backend, seconds)` | sends the call to that backend | its `Outcome` |
| `Wait(seconds)` | sleeps | `None` |
| `Probe(backend, seconds)` | asks whether the backend is ready; 0 seconds: without waiting | whether it is |
| `Find(lost, seconds)` | has the LAN server found, anew if a found server is lost | its backends, as a tuple |
| `Wake(seconds)` | wakes the machine on the LAN | whether that was done |
`seconds` bounds how long the driver may take over a step. What is not done by then goes on in the background, and the
driver sends `False`, or the backends that are known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from localwhisper_client.events import Attempt, Fallback
from localwhisper_client.routing.breaker import Signal
from localwhisper_client.routing.policy import Policy
from localwhisper_client.routing.steps import (
    FINAL,
    Announce,
    Backend,
    Ending,
    Find,
    Outcome,
    Plan,
    Probe,
    Reply,
    Step,
    Tried,
    Try,
    Verdict,
    Wait,
    Wake,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

FIRST_BACKOFF = 0.25
LONGEST_BACKOFF = 15.0
# A server that says "come back in 0 seconds" again and again is not to be hammered.
SHORTEST_BUSY_WAIT = 0.05

_SIGNALS = {
    Verdict.ANSWERED: Signal.ANSWERED,
    Verdict.MISCONFIGURED: Signal.ANSWERED,
    Verdict.BAD_REQUEST: Signal.ANSWERED,
    Verdict.OUTAGE: Signal.OUTAGE,
    Verdict.FAILURE: Signal.FAILURE,
}


@dataclass
class Call:
    """One call on its way through the backends."""

    lan: Sequence[Backend]
    cloud: Backend
    policy: Policy
    seconds: float | None
    """The call's whole time, from now; `None` when it has no deadline."""
    clock: Callable[[], float]
    jitter: Callable[[], float]
    """Random numbers in [0, 1)."""
    announce: Announce
    finds: bool = False
    """Whether `lan` is what a `Find` says."""
    wakes: bool = False
    """Whether there is a machine to wake."""
    cloud_retries: int = 0
    """How often the cloud is asked again after a fault that may pass."""
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
            yield from self._ask_lan()
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

    def _ask_cloud(self) -> Generator[Step, Reply]:
        """Try the cloud, and again after a fault that may pass, as often as the caller allows and the time lets."""
        for number in range(self.cloud_retries + 1):
            yield from self._try(self.cloud, self._left())
            pause = self.last.retry_after
            pause = backoff(number, self.jitter()) if pause is None else max(pause, SHORTEST_BUSY_WAIT)
            if not self.last.may_pass or number == self.cloud_retries or pause >= self._left():
                return
            yield Wait(pause)

    def _over(self) -> bool:
        """Whether the last outcome ends the call."""
        return self.last.verdict in FINAL

    def _ask_lan(self) -> Generator[Step, Reply]:
        if not self.finds:
            yield from self._ask(self.lan)
            return
        yield from self._find()
        known = set(self.lan)
        yield from self._ask(self.lan)
        if self.lost and not self._over():
            # Perhaps it only changed its address.
            yield from self._find()
            yield from self._ask([backend for backend in self.lan if backend not in known])

    def _find(self) -> Generator[Step, Reply]:
        found = yield Find(self.lost, self._seconds(self._left()))
        if not isinstance(found, tuple):
            raise TypeError(f"a Find is answered with a tuple of backends, not with {found!r}")
        self.lan, self.lost = found, False
        if not found:
            self._note(Backend("auto"), Outcome(Verdict.OUTAGE, "no server was found on the LAN"))

    def _ask(self, backends: Sequence[Backend]) -> Generator[Step, Reply]:
        passing = [backend for backend in backends if backend.breaker.allows_calls()]
        skipped = [backend for backend in backends if backend not in passing]
        now = self.clock()
        passing.sort(key=lambda backend: backend.pace.expected(now))
        yield from self._try_each(passing, others=bool(skipped))
        alone = not self.policy.leaves_lan and not self._over()
        for backend in skipped:
            if not alone:
                # Somebody else takes the call, so nobody waits for the probe.
                if backend.breaker.claims_probe(self.clock()):
                    yield Probe(backend)
                if not self._over():
                    self._note(backend, Outcome(Verdict.OUTAGE, "down a moment ago, not asked again yet"))
                continue
            # NullObserver else may take the call: better to ask now than to refuse because of what was true a moment ago.
            last = backend is skipped[-1]
            seconds = self._seconds(self._left() if last else self._left() / 2)
            if (yield Probe(backend, seconds)) and self._left() > 0:
                yield from self._try_each([backend], others=not last)
                if self._over():
                    return
            else:
                self._note(backend, Outcome(Verdict.OUTAGE, "down a moment ago, and still not well"))

    def _try_each(self, backends: Sequence[Backend], *, others: bool) -> Generator[Step, Reply]:
        """Try backends in turn, then those again that were busy and said for how long, if the deadline allows it.

        `others` says whether there are more on the LAN to be asked after these.
        """
        ready: dict[Backend, float] = {}
        shortest = SHORTEST_BUSY_WAIT
        queue = list(backends)
        while queue:
            backend = queue.pop(0)
            # Half of what is left is kept for those who come after it, where there are any.
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

    def _try(self, backend: Backend, seconds: float) -> Generator[Step, Reply]:
        started = self.clock()
        backend.pace.began()
        try:
            outcome = yield Try(backend, self._seconds(seconds))
        finally:
            backend.pace.ended()
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
        left = backend.cloud and outcome.verdict is not Verdict.REFUSED
        self.announce(Attempt(backend.name, outcome.verdict.value, outcome.reason, seconds, left, outcome.cost_usd))
        if outcome.verdict in _SIGNALS and not backend.cloud:
            backend.learn(_SIGNALS[outcome.verdict], now, outcome.reason, self.announce)
        if outcome.verdict is Verdict.ANSWERED:
            backend.pace.answered(seconds, outcome.audio_seconds, now)
        if outcome.queue_seconds is not None:
            backend.pace.queued(outcome.queue_seconds, now)

    @staticmethod
    def _seconds(seconds: float) -> float | None:
        return None if seconds == math.inf else max(seconds, 0.001)

    def _note(self, backend: Backend, outcome: Outcome) -> None:
        if outcome.verdict is not Verdict.ANSWERED:
            self.reason = outcome.reason
        self.last = outcome
        line = Tried(backend.name, outcome.verdict, outcome.reason)
        # A call that waits meets the same trouble again and again; its history says it once.
        if line not in self.tried:
            self.tried.append(line)

    def _left(self) -> float:
        return self.deadline - self.clock()

    def _ending(self, *, timed_out: bool = False) -> Ending:
        return Ending(
            self.last,
            tuple(self.tried),
            self.policy,
            timed_out,
            backend=self.last_backend.name if self.last_backend else "",
            cloud=self.last_backend is self.cloud,
            reason=self.reason,
            seconds=self.clock() - self.started,
            attempts=self.attempts,
            cost_usd=self.cost,
        )


def backoff(round_: int, jitter: float) -> float:
    """Return the seconds to wait after the given round, from 0: doubled each time, capped, less up to a quarter."""
    return float(min(FIRST_BACKOFF * 2.0 ** min(round_, 32), LONGEST_BACKOFF) * (1 - 0.25 * jitter))
