"""The OpenAI SDK that tries the LAN server first: `import localwhisper as openai` is the whole change to a program.

Speech-to-text goes through `LocalWhisper`; every other name is the `openai` module's own. What is ours is loaded when
it is first asked for, so that the import costs what the SDK's does.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import openai

from localwhisper_client._version import __version__

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from openai.resources.audio import Audio

    from localwhisper_client.client import AsyncLocalWhisper, LocalWhisper
    from localwhisper_client.events import LastCall, last_call
    from localwhisper_client.patch.installation import install, uninstall
    from localwhisper_client.routing.policy import Policy

    OpenAI = Client = LocalWhisper
    AsyncOpenAI = AsyncClient = AsyncLocalWhisper

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

# Our names, the module of `localwhisper_client` each is in, and what it is called there.
_OURS = {
    **dict.fromkeys(("LocalWhisper", "OpenAI", "Client"), ("client", "LocalWhisper")),
    **dict.fromkeys(("AsyncLocalWhisper", "AsyncOpenAI", "AsyncClient"), ("client", "AsyncLocalWhisper")),
    "install": ("patch.installation", "install"),
    "uninstall": ("patch.installation", "uninstall"),
    "LastCall": ("events", "LastCall"),
    "last_call": ("events", "last_call"),
}

# What programs set on the `openai` module to configure its own client, and what ours therefore takes from there.
_SETTINGS = (
    "api_key", "organization", "project", "base_url", "timeout", "max_retries", "default_headers", "default_query",
    "http_client",
)  # fmt: skip

# Parts of the module's client that can send audio. The rest, `chat` and its like, are the `openai` module's own.
_OF_THE_CLIENT = ("realtime", "live", "beta")

_lock = threading.Lock()
_current: tuple[dict[str, Any], LocalWhisper] | None = None


def policy(wish: Policy | str) -> AbstractContextManager[None]:
    """Hold every call inside a `with` block to a policy: `with localwhisper.policy("local_only"):`.

    It holds for the task or thread that runs the block, and for tasks started in it; the strictest of this, the
    client's and the environment's wins.

    Raises:
        ConfigurationError: there is no such policy.

    """
    from localwhisper_client.routing.policy import within  # noqa: PLC0415 - as above
    from localwhisper_client.settings import parse_policy  # noqa: PLC0415 - see the module's docstring

    return within(parse_policy("policy", wish))


def _client() -> LocalWhisper:
    """Return the module's client, made when first needed and made anew when the module's settings changed."""
    from localwhisper_client.client import LocalWhisper  # noqa: PLC0415 - as above

    global _current  # noqa: PLW0603 - the SDK's module client is as global
    settings = {name: getattr(openai, name) for name in _SETTINGS}
    with _lock:
        if _current is None:
            _current = settings, LocalWhisper(**settings)
        elif _current[0] != settings:
            # The LAN server and what is known of its health stay; only the cloud's part is new.
            _current = settings, LocalWhisper(_route=_current[1]._route, **settings)  # noqa: SLF001 - our own
        return _current[1]


class _Lazy:
    """A part of the module's client, which is not made before something of that part is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(_client(), self._name), attribute)


audio = cast("Audio", _Lazy("audio"))


def __getattr__(name: str) -> Any:
    if name in _OURS:
        home, there = _OURS[name]
        globals()[name] = getattr(import_module(f"localwhisper_client.{home}"), there)
        return globals()[name]
    if name in _OF_THE_CLIENT and hasattr(openai, name):
        return globals().setdefault(name, _Lazy(name))
    found = getattr(openai, name)
    if isinstance(found, type) and issubclass(found, (openai.OpenAI, openai.AsyncOpenAI)):
        # Azure's client, and others for the clouds of other companies.
        return import_module("localwhisper_client.client").routed_class(found)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_OURS, *dir(openai)})


class _Module(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # `openai.api_key = …` must reach the SDK, whatever name the program knows it by.
        if name in _SETTINGS or (hasattr(openai, name) and name not in self.__dict__ and name not in _OURS):
            setattr(openai, name, value)
        else:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Module
