"""What the client library offers to the outside; each name is loaded when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from localwhisper_client._version import __version__

if TYPE_CHECKING:
    from localwhisper_client.client import AsyncLocalWhisper, LocalWhisper
    from localwhisper_client.errors import (
        BudgetExceeded,
        CloudNotAllowed,
        CloudUnsupported,
        ConfigurationError,
        InvalidLocalResponse,
        LocalServerTimeout,
        LocalServerUnavailable,
        LocalWhisperError,
        MissingCloudKey,
    )
    from localwhisper_client.events import Attempt, BreakerClosed, BreakerOpened, BudgetReached, Event, Fallback
    from localwhisper_client.last_call import LastCall, last_call
    from localwhisper_client.routing.policy import Policy

__all__ = [
    "AsyncLocalWhisper",
    "Attempt",
    "CloudNotAllowed",
    "BreakerClosed",
    "BreakerOpened",
    "BudgetReached",
    "BudgetExceeded",
    "CloudUnsupported",
    "MissingCloudKey",
    "ConfigurationError",
    "Event",
    "Fallback",
    "InvalidLocalResponse",
    "LocalServerTimeout",
    "LocalServerUnavailable",
    "LastCall",
    "LocalWhisper",
    "LocalWhisperError",
    "Policy",
    "__version__",
    "last_call",
]

_HOME = {
    **dict.fromkeys(("AsyncLocalWhisper", "LocalWhisper"), "client"),
    **dict.fromkeys(
        (
            "CloudNotAllowed",
            "BudgetExceeded",
            "CloudUnsupported",
            "MissingCloudKey",
            "ConfigurationError",
            "InvalidLocalResponse",
            "LocalServerTimeout",
            "LocalServerUnavailable",
            "LocalWhisperError",
        ),
        "errors",
    ),
    **dict.fromkeys(("Attempt", "BreakerClosed", "BreakerOpened", "BudgetReached", "Event", "Fallback"), "events"),
    **dict.fromkeys(("Policy",), "routing.policy"),
    **dict.fromkeys(("LastCall", "last_call"), "last_call"),
}


def __getattr__(name: str) -> Any:
    # The server imports this package for its version alone, and must not pay for the SDK.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
