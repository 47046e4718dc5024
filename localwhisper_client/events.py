"""What the client tells of its work: frozen events, for a callback and the log. Never the text, never a file name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("localwhisper")
log.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Event:
    """Anything that happened to a backend."""

    backend: str
    """The backend's name: the base URL, without credentials."""


@dataclass(frozen=True, slots=True)
class Attempt(Event):
    """A backend was tried and this came of it."""

    verdict: str
    """`answered`, `outage`, `failure`, `busy`, `misconfigured`, `bad_request` or `refused`."""
    reason: str
    """What was seen, in words; empty for an answer."""
    seconds: float
    """How long the attempt took; for a stream, until its first event."""
    cloud: bool
    """Whether the audio left the LAN."""
    cost: float | None = 0.0
    """Dollars that it cost; `None` where unknown."""


@dataclass(frozen=True, slots=True)
class Fallback(Event):
    """The call goes to the cloud, because nobody on the LAN could take it."""

    reason: str


@dataclass(frozen=True, slots=True)
class BreakerOpened(Event):
    """Calls pass this backend by from now on."""

    reason: str


@dataclass(frozen=True, slots=True)
class BreakerClosed(Event):
    """Calls go to this backend again."""


@dataclass(frozen=True, slots=True)
class BudgetReached(Event):
    """The cloud was not asked, because the budget is spent or cannot be checked."""

    reason: str
    cost: float | None
    """The most that the call could have cost, in dollars; `None` where no price is known."""


@dataclass(frozen=True, slots=True)
class LanguageDropped(Event):
    """The cloud was not told the language of a call, because its model does not take that one."""

    language: str
    model: str


class Announcer:
    """Hands events to the log and to the user's callback, whose faults never reach the call."""

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
