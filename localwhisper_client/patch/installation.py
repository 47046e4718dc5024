"""`install()` changes the SDK's client classes, so that an unmodified program's speech-to-text goes to the LAN server.

Two methods of `openai.OpenAI` and of `openai.AsyncOpenAI` are replaced, for all clients and subclasses, made before or
after. `request` hands a speech-to-text call to the routing of `LocalWhisper`, and leaves every other call alone.
`__init__` does without a key under a policy that lets no audio leave the LAN. The cloud, where the policy allows it, is
the program's own client with all its settings.

Realtime sessions go over WebSockets, which the SDK and voice frameworks open through other libraries: see `sockets`.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Unpack

import openai

from localwhisper_client.patch.sockets import PatchedSockets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from localwhisper_client.settings import RoutingOptions

HOOK = Path(__file__).with_name("run_hook")
"""The folder that `localwhisper run` puts on PYTHONPATH."""

_KEY_ARGUMENTS = ("api_key", "provider", "workload_identity")
_INHERITED = object()
_lock = threading.Lock()
_installed: list[_PatchedClass | PatchedSockets] = []


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
        if not _installed:
            route = _Route("LocalWhisper", options)
            async_route = _RouteByLoop("AsyncLocalWhisper", options)
            _installed.append(_PatchedClass(openai.OpenAI, route, route))
            _installed.append(_PatchedClass(openai.AsyncOpenAI, async_route, route))
            _installed.append(PatchedSockets(route, async_route, _library))


def uninstall() -> None:
    """Restore the SDK as it was; calls in progress end as they began."""
    later = sys.modules.get(__name__)
    if later is not None and later.__dict__ is not globals():
        later.uninstall()
    with _lock:
        while _installed:
            _installed.pop().restore()


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which each Python, and each Python that it starts, does `install` by itself."""
    paths = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != str(HOOK)]
    return {**environ, "PYTHONPATH": os.pathsep.join([str(HOOK), *paths])}


@functools.cache
def _library() -> Any:
    """Return the modules that the patch uses. They are loaded at the first call, not at the top of this module.

    Under `localwhisper run` one of our own modules may be the first to load the SDK. The hook then loads this module
    while that one is half loaded.
    """
    from localwhisper_client import client, realtime, request  # noqa: PLC0415
    from localwhisper_client.lan import servers  # noqa: PLC0415 - as the docstring says

    return SimpleNamespace(client=client, realtime=realtime, request=request, servers=servers)


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
        return getattr(_library().client, self._class_name)

    def load(self) -> Any:
        """Return a new route with the settings as they are now."""
        return self.client_class(**self._options, api_key="none")._route  # noqa: SLF001 - our own


class _RouteByLoop(_Route):
    """The routes of async clients, one for each event loop: connections cannot move from one loop to another."""

    def __init__(self, class_name: str, options: RoutingOptions) -> None:
        from anyio.lowlevel import RunVar  # noqa: PLC0415 - only `install` needs it

        super().__init__(class_name, options)
        self._of_loop: RunVar[Any] = RunVar("localwhisper_route")

    def __call__(self) -> Any:
        route = self._of_loop.get(None)
        if route is None:
            route = self.load()
            self._of_loop.set(route)
        return route


class _PatchedClass:
    """One client class of the SDK with two methods replaced; `sync_route` is the route that needs no event loop."""

    def __init__(self, sdk_class: Any, route: _Route, sync_route: _Route) -> None:
        self._sdk_class = sdk_class
        self._found = {name: vars(sdk_class).get(name, _INHERITED) for name in ("request", "__init__")}
        request, init = sdk_class.request, sdk_class.__init__

        @functools.cache
        def stand_in(program_class: Any) -> Any:
            # A client of ours whose cloud is a client of the program's class. `super().request` of ours must not run
            # the program's own `request` a second time, so it finds the SDK's in the class between the two.
            original = type("Original", (sdk_class,), {"request": request})
            return type(program_class.__name__, (route.client_class, original, program_class), {"own_cloud": True})

        @functools.wraps(request)
        def routed_request(client: Any, cast_to: Any, options: Any, **streaming: Any) -> Any:
            library = _library()
            if isinstance(client, route.client_class) or library.servers.belongs_to_lan(client):
                return request(client, cast_to, options, **streaming)
            if library.request.endpoint(client, options) is None:
                if library.request.starts_realtime(options):
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

        sdk_class.request = routed_request
        sdk_class.__init__ = keyless_init

    def restore(self) -> None:
        """Put the methods back; one that was inherited is inherited again."""
        for name, found in self._found.items():
            if found is _INHERITED:
                delattr(self._sdk_class, name)
            else:
                setattr(self._sdk_class, name, found)
