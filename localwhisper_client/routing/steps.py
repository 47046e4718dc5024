"""What the routing and the two drivers say to each other: verdicts, outcomes, backends, and the steps of a plan."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from localwhisper_client.events import BreakerClosed, BreakerOpened, Event
from localwhisper_client.routing.breaker import Breaker, Signal, State
from localwhisper_client.routing.latency import LatencyEstimate

if TYPE_CHECKING:
    from localwhisper_client.routing.policy import Policy


class Verdict(StrEnum):
    """What a backend's behaviour means for the call."""

    ANSWERED = "answered"
    OUTAGE = "outage"
    """NullObserver there: the breaker opens at once; next backend."""
    FAILURE = "failure"
    """Somebody there who failed: the breaker counts; next backend."""
    BUSY = "busy"
    """Well, but full: the breaker stays as it is; wait if the answer says how long, else next backend."""
    MISCONFIGURED = "misconfigured"
    """Wrong key, wrong address: raised, never hidden behind the cloud."""
    BAD_REQUEST = "bad_request"
    """The call itself is wrong: raised, never paid for a second time."""
    REFUSED = "refused"
    """Not sent, by our own rule: the budget is spent, or the cloud could not give what is asked for."""


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
    queue_seconds: float | None = None
    """The wait that the server foretells to whoever comes next."""
    audio_seconds: float | None = None
    """How long the audio was, where the answer or the file told."""
    cost_usd: float | None = 0.0
    """What the attempt cost; `None` where that is unknown."""
    may_pass: bool = False
    """Whether the same call may do better in a moment; for the cloud, which has no breaker."""


@dataclass(frozen=True, eq=False)
class Backend:
    """Somebody who can transcribe, and what is known of their health."""

    name: str
    """The base URL, without credentials."""
    cloud: bool = False
    breaker: Breaker = field(default_factory=Breaker)
    pace: LatencyEstimate = field(default_factory=LatencyEstimate)

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
    backend: str = ""
    """Who had the last word."""
    cloud: bool = False
    reason: str = ""
    """What kept the call from whoever was asked before; empty where nobody was."""
    seconds: float = 0.0
    """How long the call took, all attempts together."""
    attempts: int = 0
    cost_usd: float | None = 0.0
    """What all attempts cost; `None` where that is unknown."""


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
    seconds: float | None = 0.0
    """How long to wait for the answer at most; 0 leaves the probe to the background."""


@dataclass(frozen=True, slots=True)
class Find:
    """Find the servers on the LAN."""

    lost: bool
    """Whether one that was found before is not there."""
    seconds: float | None = None
    """How long to wait for it at most."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake the machine on the LAN."""

    seconds: float | None = None
    """How long to wait for it at most."""


Announce: TypeAlias = Callable[[Event], None]
Step: TypeAlias = Try | Wait | Probe | Find | Wake
Reply: TypeAlias = Outcome | tuple[Backend, ...] | bool | None
Plan: TypeAlias = Generator[Step, Reply, Ending]

FINAL = frozenset({Verdict.ANSWERED, Verdict.MISCONFIGURED, Verdict.BAD_REQUEST})
"""The verdicts after which nobody else is asked."""
