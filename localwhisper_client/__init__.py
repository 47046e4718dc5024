"""What the client library offers to the outside; each name is loaded when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from localwhisper_client._version import __version__

if TYPE_CHECKING:
    from localwhisper_client.client import AsyncLocalWhisper, LocalWhisper
    from localwhisper_client.errors import (
        CloudKeyMissing,
        ConfigurationError,
        HouseAnsweredWrongly,
        HouseTimedOut,
        HouseUnavailable,
        LocalWhisperError,
    )
    from localwhisper_client.events import Attempt, BreakerClosed, BreakerOpened, Event, Fallback
    from localwhisper_client.policy import Policy

__all__ = [
    "AsyncLocalWhisper",
    "Attempt",
    "BreakerClosed",
    "BreakerOpened",
    "CloudKeyMissing",
    "ConfigurationError",
    "Event",
    "Fallback",
    "HouseAnsweredWrongly",
    "HouseTimedOut",
    "HouseUnavailable",
    "LocalWhisper",
    "LocalWhisperError",
    "Policy",
    "__version__",
]

_HOME = {
    **dict.fromkeys(("AsyncLocalWhisper", "LocalWhisper"), "client"),
    **dict.fromkeys(("Attempt", "BreakerClosed", "BreakerOpened", "Event", "Fallback"), "events"),
    **dict.fromkeys(
        (
            "CloudKeyMissing",
            "ConfigurationError",
            "HouseAnsweredWrongly",
            "HouseTimedOut",
            "HouseUnavailable",
            "LocalWhisperError",
        ),
        "errors",
    ),
    "Policy": "policy",
}


def __getattr__(name: str) -> Any:
    # The server imports this package for its version alone, and must not pay for the SDK.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
