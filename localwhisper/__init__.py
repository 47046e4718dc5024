"""The OpenAI SDK that asks the LAN server first. A program changes one line: `import localwhisper as openai`.

Speech-to-text goes through `LocalWhisper`; every other name is the `openai` module's own. Our own modules are loaded at
their first use, so that this import takes no longer than the SDK's.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import openai

from localwhisper_client import __version__

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from openai.resources.audio import Audio

    from localwhisper_client import AsyncLocalWhisper, LastCall, LocalWhisper, Policy, last_call
    from localwhisper_client.patch.installation import install, uninstall

    OpenAI = Client = LocalWhisper
    AsyncOpenAI = AsyncClient = AsyncLocalWhisper
    audio: Audio

__all__ = [
    "AsyncLocalWhisper",
    "AsyncOpenAI",
    "LastCall",
    "LocalWhisper",
    "OpenAI",
    "__version__",
    "audio",
    "install",
    "last_call",
    "policy",
    "uninstall",
]

# Our names, the module that each is in, and what it is called there.
_OURS = {
    **dict.fromkeys(("LocalWhisper", "OpenAI", "Client"), ("localwhisper_client", "LocalWhisper")),
    **dict.fromkeys(("AsyncLocalWhisper", "AsyncOpenAI", "AsyncClient"), ("localwhisper_client", "AsyncLocalWhisper")),
    "LastCall": ("localwhisper_client", "LastCall"),
    "last_call": ("localwhisper_client", "last_call"),
    "install": ("localwhisper_client.patch.installation", "install"),
    "uninstall": ("localwhisper_client.patch.installation", "uninstall"),
}

# Programs set these on the `openai` module to configure the module's client; ours reads them from there.
_SETTINGS = (
    "api_key", "organization", "project", "base_url", "timeout", "max_retries", "default_headers", "default_query",
    "http_client",
)  # fmt: skip

# The parts of the module's client that can send audio. `chat` and the rest are the `openai` module's own.
_AUDIO_PARTS = ("audio", "realtime", "live", "beta")

_lock = threading.Lock()
_current: tuple[dict[str, Any], LocalWhisper] | None = None


def policy(name: Policy | str) -> AbstractContextManager[None]:
    """Set the policy of all calls inside a `with` block: `with localwhisper.policy("local_only"):`.

    It applies to the task or thread that runs the block, and to tasks started in it. The strictest of this policy, the
    client's and the environment's wins.

    Raises:
        ConfigurationError: there is no such policy.

    """
    from localwhisper_client.routing.policy import within  # noqa: PLC0415 - see the module's docstring
    from localwhisper_client.settings import parse_policy  # noqa: PLC0415 - only where it is needed

    return within(parse_policy("policy", name))


def _client() -> LocalWhisper:
    """Return the module's client, made at its first use, and again after the module's settings have changed."""
    from localwhisper_client import LocalWhisper  # noqa: PLC0415 - see the module's docstring

    global _current  # noqa: PLW0603 - as the SDK's module client
    settings = {name: getattr(openai, name) for name in _SETTINGS}
    with _lock:
        if _current is None or _current[0] != settings:
            # With new settings only the cloud's part is new: the LAN servers and their breakers stay.
            route = _current[1]._route if _current else None  # noqa: SLF001 - our own
            _current = settings, LocalWhisper(_route=route, **settings)
        return _current[1]


class _Lazy:
    """A part of the module's client. The client is made when an attribute of the part is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(_client(), self._name), attribute)


def __getattr__(name: str) -> Any:
    if name in _OURS:
        module, there = _OURS[name]
        globals()[name] = getattr(import_module(module), there)
        return globals()[name]
    if name in _AUDIO_PARTS and hasattr(openai, name):
        return globals().setdefault(name, _Lazy(name))
    found = getattr(openai, name)
    if isinstance(found, type) and issubclass(found, (openai.OpenAI, openai.AsyncOpenAI)):
        # The SDK's client for Azure, and those for other clouds.
        return import_module("localwhisper_client.client").routed_class(found)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_OURS, *dir(openai)})


class _Module(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # `openai.api_key = …` must reach the SDK, also if the program knows this module as `openai`.
        if name in _SETTINGS or (hasattr(openai, name) and name not in self.__dict__ and name not in _OURS):
            setattr(openai, name, value)
        else:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Module
