"""What the client reports: events for a callback and the log, and the last call. Never the text, never a file name."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("localwhisper")
log.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a backend."""

    backend: str
    """The backend's base URL, without credentials."""


@dataclass(frozen=True, slots=True)
class Attempt(Event):
    """A backend was tried."""

    verdict: str
    """What came of it, and what the call does next:

    - `answered`: it gave the transcript.
    - `outage`: it could not be reached. The breaker opens; the next backend is tried.
    - `failure`: it was reached and failed. The breaker counts; the next backend is tried.
    - `busy`: it is healthy but full. The breaker does not change. The call waits if the answer says how long, else the
      next backend is tried.
    - `misconfigured`: the key or the address is wrong. Raised, never hidden by a fallback to the cloud.
    - `bad_request`: the call itself is wrong. Raised; it never reaches a paid API.
    - `refused`: it was not sent, because of the budget or because the cloud cannot answer it.
    """
    reason: str
    """What went wrong, in words; empty for an answer."""
    seconds: float
    """How long the attempt took; for a stream, until its first event."""
    cloud: bool
    """Whether audio left the LAN."""
    cost: float | None = 0.0
    """What it cost in dollars; `None` if unknown."""


@dataclass(frozen=True, slots=True)
class Fallback(Event):
    """The call goes to the cloud, because no local server answered it."""

    reason: str


@dataclass(frozen=True, slots=True)
class BreakerOpened(Event):
    """Calls skip this backend from now on."""

    reason: str


@dataclass(frozen=True, slots=True)
class BreakerClosed(Event):
    """Calls go to this backend again."""


@dataclass(frozen=True, slots=True)
class BudgetReached(Event):
    """The cloud was not asked, because the budget is used up or cannot be checked."""

    reason: str
    cost: float | None
    """The most that the call could have cost, in dollars; `None` if no price is known."""


@dataclass(frozen=True, slots=True)
class LanguageDropped(Event):
    """The cloud was not told the call's language, because its model does not accept that language."""

    language: str
    model: str


class Announcer:
    """Passes events to the log and to the user's callback. An exception in the callback does not reach the call."""

    def __init__(self, callback: Callable[[Event], None] | None = None) -> None:
        self.callback = callback

    def __call__(self, event: Event) -> None:
        """Announce one event."""
        quiet = isinstance(event, Attempt) and event.verdict == "answered"
        log.log(logging.DEBUG if quiet else logging.WARNING, "%s", event)
        if self.callback is not None:
            try:
                self.callback(event)
            except Exception:
                log.exception("on_event raised; the call goes on")


@dataclass(frozen=True, slots=True)
class LastCall:
    """How one speech-to-text call went, whether it was answered or failed."""

    backend: str
    """The base URL of the last backend tried, without credentials; empty if none was tried."""
    cloud: bool
    """Whether that was the cloud."""
    reason: str
    """Why earlier backends did not answer, or why the call failed; empty if the first backend answered."""
    seconds: float
    """How long the call took, all attempts together; for a stream, until its first event."""
    cost: float | None
    """What all attempts cost in dollars: 0 for the local server, `None` if unknown."""
    audio_seconds: float | None
    """How long the audio was; `None` if neither the answer nor the ledger tells."""
    attempts: int
    """How many requests with audio were sent."""


_last: ContextVar[LastCall | None] = ContextVar("localwhisper_last_call", default=None)


def last_call() -> LastCall | None:
    """Return how the last speech-to-text call of this task, or of this thread outside of any task, went.

    `None` before the first one.
    """
    return _last.get()


def remember(call: LastCall) -> None:
    """Make this the last call of the current task or thread."""
    _last.set(call)
