"""`install()` changes the SDK's client classes, so that an unmodified program's speech-to-text goes to the LAN server.

Two methods of `openai.OpenAI` and of `openai.AsyncOpenAI` are replaced, for all clients and subclasses, made before or
after. `request` hands a speech-to-text call to the routing of `LocalWhisper`, and leaves every other call alone.
`__init__` does without a key under a policy that lets no audio leave the LAN. The cloud, where the policy allows it, is
the program's own client with all its settings.

Realtime sessions go over WebSockets, which the SDK and voice frameworks open through other libraries: see `sockets`.

Most of our own modules are loaded at the first call. Under `localwhisper run` one of them may be the first to load the
SDK; the hook then loads this module while that one is half loaded.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import openai
from anyio.lowlevel import RunVar

from localwhisper_client import request as sdk_request
from localwhisper_client.patch.sockets import Sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localwhisper_client.settings import RoutingOptions

HOOK = Path(__file__).with_name("run_hook")
"""The folder that `localwhisper run` puts on PYTHONPATH."""

_KEY_ARGUMENTS = ("api_key", "provider", "workload_identity")
_lock = threading.Lock()
# Puts back what was replaced, one thing each, the last first.
_undo: list[Callable[[], None]] = []


def install(**options: Unpack[RoutingOptions]) -> None:
    """Send the speech-to-text of every `openai` client of this process to the LAN server, until `uninstall`.

    The arguments are `LocalWhisper`'s. The environment is read at the first call, so a program may still load a `.env`
    file. A second call changes nothing, unless the program has loaded the SDK anew: then the new one is changed too.
    """
    if sys.modules.get("openai", openai) is not openai:
        # Our classes derive from the SDK that was loaded before; the new SDK gets new classes.
        for name in [name for name in sys.modules if name.partition(".")[0] == "localwhisper_client"]:
            del sys.modules[name]
        import_module("localwhisper_client.patch.installation").install(**options)
        return
    with _lock:
        if not _undo:
            route = _Route("LocalWhisper", options)
            _patch_class(openai.OpenAI, route, route)
            async_route = _RouteByLoop("AsyncLocalWhisper", options)
            _patch_class(openai.AsyncOpenAI, async_route, route)
            _undo.append(Sockets(route, async_route, _replace).patch())


def uninstall() -> None:
    """Restore the SDK as it was; calls in progress end as they began."""
    later = sys.modules.get(__name__)
    if later is not None and later.__dict__ is not globals():
        later.uninstall()
    with _lock:
        while _undo:
            _undo.pop()()


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which each Python, and each Python that it starts, does `install` by itself."""
    paths = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != str(HOOK)]
    return {**environ, "PYTHONPATH": os.pathsep.join([str(HOOK), *paths])}


class _Route:
    """The route that all sync clients share, made at the first call. `class_name` is our client class of this kind."""

    def __init__(self, class_name: str, options: RoutingOptions) -> None:
        self._class_name, self._options = class_name, options
        self._route: Any = None
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        with self._lock:
            if self._route is None:
                self._route = self.load()
            return self._route

    @property
    def client_class(self) -> Any:
        from localwhisper_client import client  # noqa: PLC0415 - see the module's docstring

        return getattr(client, self._class_name)

    def load(self) -> Any:
        """Return a new route with the settings as they are now."""
        return self.client_class(**self._options, api_key="none")._route  # noqa: SLF001 - our own


class _RouteByLoop(_Route):
    """The routes of async clients, one for each event loop: connections cannot move from one loop to another."""

    def __init__(self, class_name: str, options: RoutingOptions) -> None:
        super().__init__(class_name, options)
        self._of_loop: RunVar[Any] = RunVar("localwhisper_route")

    def __call__(self) -> Any:
        route = self._of_loop.get(None)
        if route is None:
            route = self.load()
            self._of_loop.set(route)
        return route


def _replace(holder: Any, name: str, new: Any) -> None:
    """Set an attribute; one that was inherited is inherited again by `uninstall`."""
    found = vars(holder)
    restore = functools.partial(setattr, holder, name, found[name]) if name in found else None
    _undo.append(restore or functools.partial(delattr, holder, name))
    setattr(holder, name, new)


def _patch_class(sdk_class: Any, route: _Route, sync_route: _Route) -> None:
    """Replace two methods of a client class of the SDK; `sync_route` is the route that needs no event loop."""
    request, init = sdk_class.request, sdk_class.__init__

    @functools.cache
    def stand_in(program_class: Any) -> Any:
        # A client of ours whose cloud is a client of the program's class. `super().request` of ours must not run the
        # program's own `request` a second time, so it finds the SDK's in the class between the two.
        original = type("Original", (sdk_class,), {"request": request})
        return type(program_class.__name__, (route.client_class, original, program_class), {"own_cloud": True})

    @functools.wraps(request)
    def routed_request(client: Any, cast_to: Any, options: Any, **streaming: Any) -> Any:
        from localwhisper_client.lan.servers import belongs_to_lan  # noqa: PLC0415 - as above

        if isinstance(client, route.client_class) or belongs_to_lan(client):
            return request(client, cast_to, options, **streaming)
        if sdk_request.endpoint(client, options) is None:
            if sdk_request.starts_realtime(options):
                sync_route().allow_realtime(str(client.websocket_base_url or client.base_url))
            return request(client, cast_to, options, **streaming)
        standing_in = object.__new__(stand_in(client.__class__))
        standing_in.__dict__.update(client.__dict__, _route=route())
        return standing_in.request(cast_to, options, **streaming)

    @functools.wraps(init)
    def keyless_init(client: Any, *args: Any, **options: Any) -> None:
        try:
            init(client, *args, **options)
        except openai.OpenAIError:
            # Only the SDK knows what counts as a key, and that has changed with its versions.
            if any(options.get(name) for name in _KEY_ARGUMENTS) or route.load().settings.policy.leaves_lan:
                raise
            # The SDK calls this when it needs a key, and it raises.
            init(client, *args, **{**options, "api_key": route.client_class._no_key})  # noqa: SLF001 - our own

    _replace(sdk_class, "request", routed_request)
    _replace(sdk_class, "__init__", keyless_init)
