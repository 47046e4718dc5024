"""Sends an unmodified program's speech-to-text home: it changes the SDK's client classes, and changes them back.

Two methods of `openai.OpenAI` and of `openai.AsyncOpenAI` are replaced. `request` hands a speech-to-text call to the
routing of `LocalWhisper` and leaves every other call alone, for clients and subclasses made before or after, and for
the module's own. `__init__` does without a key where nothing may leave the house. The cloud, where the policy allows
it, is the program's own client with all its settings.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
from anyio.lowlevel import RunVar

from localwhisper_client import client as ours
from localwhisper_client.house import belongs_to_house
from localwhisper_client.route import Route, is_speech_to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localwhisper_client.events import Event
    from localwhisper_client.policy import Policy

HOOK = Path(__file__).with_name("run_hook")
"""The folder that `localwhisper run` puts on PYTHONPATH."""

_HAS_A_KEY = ("api_key", "provider", "workload_identity")
_MISSING = object()
_lock = threading.Lock()
_installed: list[_Patched] = []


def install(
    *,
    lan_url: str | None = None,
    lan_key: str | None = None,
    policy: Policy | str | None = None,
    connect_timeout: float | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> None:
    """Send the speech-to-text of every `openai` client of this process home, until `uninstall`.

    The arguments are `LocalWhisper`'s; the environment is read at the first call, so a program may still load a
    `.env` file. Installing twice changes nothing.
    """
    options = {
        "lan_url": lan_url,
        "lan_key": lan_key,
        "policy": policy,
        "connect_timeout": connect_timeout,
        "on_event": on_event,
    }
    with _lock:
        if not _installed:
            _installed.append(_Patched(openai.OpenAI, _OneRoute(openai.OpenAI, options), _sync_shadow, ours._no_key))  # noqa: SLF001 - our own
            _installed.append(
                _Patched(openai.AsyncOpenAI, _RouteOfLoop(openai.AsyncOpenAI, options), _async_shadow, ours._no_async_key)  # noqa: SLF001
            )


def uninstall() -> None:
    """Leave the SDK as it was found; calls that are under way end as they began."""
    with _lock:
        while _installed:
            _installed.pop().restore()


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which every Python, and every Python that one starts, does `install` by itself."""
    paths = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != str(HOOK)]
    return {**environ, "PYTHONPATH": os.pathsep.join([str(HOOK), *paths])}


class _OneRoute:
    """The route of all sync clients, made at the first call."""

    def __init__(self, kind: Any, options: dict[str, Any]) -> None:
        self._kind, self._options = kind, options
        self._route: Any = None
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        with self._lock:
            if self._route is None:
                self._route = self.load()
            return self._route

    def load(self) -> Any:
        """Read the settings as they are now."""
        return Route.load(self._kind, os.environ, **self._options)


class _RouteOfLoop(_OneRoute):
    """The route of all async clients of an event loop: connections cannot move from one loop to another."""

    def __init__(self, kind: Any, options: dict[str, Any]) -> None:
        super().__init__(kind, options)
        self._of_loop: RunVar[Any] = RunVar("localwhisper_route")

    def __call__(self) -> Any:
        route = self._of_loop.get(None)
        if route is None:
            route = self.load()
            self._of_loop.set(route)
        return route


class _Patched:
    """One client class of the SDK with two methods replaced."""

    def __init__(self, kind: Any, route: _OneRoute, shadow: Any, no_key: Any) -> None:
        self._kind = kind
        self._found = {name: vars(kind).get(name, _MISSING) for name in ("request", "__init__")}
        request, init = kind.request, kind.__init__

        @functools.wraps(request)
        def routed_request(client: Any, cast_to: Any, options: Any, **streaming: Any) -> Any:
            if not is_speech_to_text(options) or isinstance(client, _OURS) or belongs_to_house(client):
                return request(client, cast_to, options, **streaming)
            stand_in = object.__new__(shadow(type(client), request))
            stand_in.__dict__.update(client.__dict__, _route=route())
            return stand_in.request(cast_to, options, **streaming)

        @functools.wraps(init)
        def keyless_init(client: Any, *args: Any, **options: Any) -> None:
            try:
                init(client, *args, **options)
            except openai.OpenAIError:
                # The SDK alone knows what would have done for a key, and that has changed with its versions.
                if any(options.get(name) for name in _HAS_A_KEY) or route.load().policy.leaves_house:
                    raise
                init(client, *args, **{**options, "api_key": no_key})

        kind.request = routed_request
        kind.__init__ = keyless_init

    def restore(self) -> None:
        """Put back what was there; what was inherited is inherited again."""
        for name, found in self._found.items():
            if found is _MISSING:
                delattr(self._kind, name)
            else:
                setattr(self._kind, name, found)


_OURS = (ours.LocalWhisper, ours.AsyncLocalWhisper)


@functools.cache
def _sync_shadow(kind: Any, request: Any) -> Any:
    """Return a `LocalWhisper` whose cloud is a client of this class, asked by the SDK's own `request`."""
    # The class in the middle is where `LocalWhisper` finds `super().request`: past whatever the program's own class
    # does there, which it has done by now.
    original = type("Original", (openai.OpenAI,), {"request": request})
    return type(kind.__name__, (ours.LocalWhisper, original, kind), {})


@functools.cache
def _async_shadow(kind: Any, request: Any) -> Any:
    original = type("Original", (openai.AsyncOpenAI,), {"request": request})
    return type(kind.__name__, (ours.AsyncLocalWhisper, original, kind), {})
