"""Where the last answer came from: for the program that asked, and for its traces."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class LastCall:
    """How one call to speech-to-text went, whether it was answered or failed."""

    backend: str
    """Who answered, or failed last: a base URL without credentials; empty where nobody was asked."""
    cloud: bool
    """Whether that was the cloud."""
    reason: str
    """Why it went there, or why it failed: what was wrong with those asked before. Empty for an answer at once."""
    seconds: float
    """How long the call took, all attempts together; for a stream, until its first event."""
    cost: float | None
    """Dollars; 0 for the LAN server, `None` where unknown. For a call that asked both, the sum."""
    audio_seconds: float | None
    """How long the audio was; `None` where neither answer nor ledger told."""
    attempts: int
    """How many requests with audio were made."""


_last: ContextVar[LastCall | None] = ContextVar("localwhisper_last_call", default=None)


def last_call() -> LastCall | None:
    """Return how this task's (or, outside of any, this thread's) last speech-to-text call went; `None` before it."""
    return _last.get()


def remember(call: LastCall) -> None:
    """Make this the last call of the task or thread that runs, and put it on its OpenTelemetry span."""
    _last.set(call)
    span = _span.get()
    if span is not None:
        for name, value in asdict(call).items():
            if value is not None:
                span.set_attribute(f"localwhisper.{name}", value)


_span: ContextVar[Any] = ContextVar("localwhisper_span", default=None)


@contextmanager
def traced(path: str) -> Iterator[None]:
    """Put what happens inside under a span named for the endpoint, where the OpenTelemetry API is installed."""
    try:
        from opentelemetry import trace  # noqa: PLC0415 - there or not, as the program likes
    except ModuleNotFoundError:
        yield
        return
    with trace.get_tracer("localwhisper").start_as_current_span(f"localwhisper {path.strip('/')}") as span:
        token = _span.set(span)
        try:
            yield
        finally:
            _span.reset(token)
