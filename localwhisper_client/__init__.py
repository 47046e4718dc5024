"""The client library's public names; each is loaded when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    from localwhisper_client.events import (
        Attempt,
        BreakerClosed,
        BreakerOpened,
        BudgetReached,
        Event,
        Fallback,
        LanguageDropped,
        LastCall,
        last_call,
    )
    from localwhisper_client.routing.policy import Policy

__all__ = [
    "AsyncLocalWhisper",
    "Attempt",
    "BreakerClosed",
    "BreakerOpened",
    "BudgetExceeded",
    "BudgetReached",
    "CloudNotAllowed",
    "CloudUnsupported",
    "ConfigurationError",
    "Event",
    "Fallback",
    "InvalidLocalResponse",
    "LanguageDropped",
    "LastCall",
    "LocalServerTimeout",
    "LocalServerUnavailable",
    "LocalWhisper",
    "LocalWhisperError",
    "MissingCloudKey",
    "Policy",
    "__version__",
    "last_call",
]

__version__ = "0.1.0"
"""The version of the distribution. The server reads it from here: every install has the client."""

# The modules that are searched for a name, in this order.
_MODULES = ("events", "routing.policy", "errors", "client")


def __getattr__(name: str) -> Any:
    # The server imports this package for its version, and must not load the SDK for that.
    if name in __all__:
        for module in map(import_module, (f"{__name__}.{each}" for each in _MODULES)):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
