"""Sends an unmodified program's speech-to-text home: it changes the SDK's client classes, and changes them back.

Two methods of `openai.OpenAI` and of `openai.AsyncOpenAI` are replaced. `request` hands a speech-to-text call to the
routing of `LocalWhisper` and leaves every other call alone, for clients and subclasses made before or after, and for
the module's own. `__init__` does without a key where nothing may leave the LAN. The cloud, where the policy allows
it, is the program's own client with all its settings. WebSockets are opened by other libraries, for the SDK and for
voice frameworks alike; those are made to ask before they open a realtime session.
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

from localwhisper_client.patch.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localwhisper_client.route import RoutingOptions

HOOK = Path(__file__).with_name("run_hook")
"""The folder that `localwhisper run` puts on PYTHONPATH."""

_HAS_A_KEY = ("api_key", "provider", "workload_identity")
_MISSING = object()
_lock = threading.Lock()
_installed: list[_Patched | _Sockets] = []
# The libraries that open WebSockets, and where each of them reads the address first.
_SOCKETS = {
    "websockets.asyncio.client": "parse_uri",
    "websockets.sync.client": "parse_uri",
    "websockets.legacy.client": "parse_uri",
    "aiohttp.client": "ClientSession",
}


def install(**options: Unpack[RoutingOptions]) -> None:
    """Send the speech-to-text of every `openai` client of this process home, until `uninstall`.

    The arguments are `LocalWhisper`'s; the environment is read at the first call, so a program may still load a
    `.env` file. Installing twice changes nothing, unless the program has loaded the SDK anew: then the new one is
    changed as well.
    """
    if sys.modules.get("openai", openai) is not openai:
        # Our classes are made from the SDK that was there before; the new one gets new ones.
        for name in [name for name in sys.modules if name.partition(".")[0] == "localwhisper_client"]:
            del sys.modules[name]
        import_module("localwhisper_client.patch.installation").install(**options)
        return
    with _lock:
        if not _installed:
            one = _OneRoute("LocalWhisper", options)
            _installed.append(_Patched(openai.OpenAI, one, one))
            _installed.append(_Patched(openai.AsyncOpenAI, _RouteOfLoop("AsyncLocalWhisper", options), one))
            _installed.append(_Sockets(one))


def uninstall() -> None:
    """Leave the SDK as it was found; calls that are under way end as they began."""
    later = sys.modules.get(__name__)
    if later is not None and later.__dict__ is not globals():
        later.uninstall()
    with _lock:
        while _installed:
            _installed.pop().restore()


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which every Python, and every Python that one starts, does `install` by itself."""
    paths = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != str(HOOK)]
    return {**environ, "PYTHONPATH": os.pathsep.join([str(HOOK), *paths])}


class _OneRoute:
    """The route of all sync clients, made at the first call; `name` is that of our client of the flavour."""

    def __init__(self, name: str, options: RoutingOptions) -> None:
        self._name = name
        self._options = options
        self._route: Any = None
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        with self._lock:
            if self._route is None:
                self._route = self.template()._route  # noqa: SLF001 - our own
            return self._route

    @property
    def kind(self) -> Any:
        """Our client class."""
        return getattr(_ours("client"), self._name)

    @property
    def no_key(self) -> Any:
        """What the SDK calls for a key where there is none; it raises."""
        return _ours("client")._no_key  # noqa: SLF001 - our own

    def template(self) -> Any:
        """Return a client of ours with the settings as they are now; its cloud is nobody's."""
        return self.kind(**self._options, api_key="none")


class _RouteOfLoop(_OneRoute):
    """The route of all async clients of an event loop: connections cannot move from one loop to another."""

    def __init__(self, name: str, options: RoutingOptions) -> None:
        from anyio.lowlevel import RunVar  # noqa: PLC0415 - for whoever installs the patch, not for every import

        super().__init__(name, options)
        self._of_loop: RunVar[Any] = RunVar("localwhisper_route")

    @property
    def no_key(self) -> Any:
        """The same, awaited."""
        return _ours("client")._no_async_key  # noqa: SLF001 - our own

    def __call__(self) -> Any:
        route = self._of_loop.get(None)
        if route is None:
            route = self.template()._route  # noqa: SLF001 - our own
            self._of_loop.set(route)
        return route


class _Patched:
    """One client class of the SDK with two methods replaced; `one` is the route that needs no event loop."""

    def __init__(self, kind: Any, route: _OneRoute, one: _OneRoute) -> None:
        self._kind = kind
        self._found = {name: vars(kind).get(name, _MISSING) for name in ("request", "__init__")}
        request, init = kind.request, kind.__init__

        @functools.cache
        def stand_in(program_class: Any) -> Any:
            # A client of ours whose cloud is a client of the program's class. The class in the middle is where ours
            # finds `super().request`: past whatever the program's class does there, which it has done by now.
            original = type("Original", (kind,), {"request": request})
            return type(program_class.__name__, (route.kind, original, program_class), {"own_cloud": True})

        @functools.wraps(request)
        def routed_request(client: Any, cast_to: Any, options: Any, **streaming: Any) -> Any:
            if isinstance(client, route.kind) or _ours("lan.servers").belongs_to_lan(client):
                return request(client, cast_to, options, **streaming)
            if _ours("endpoints").endpoint(client, options) is None:
                if _ours("endpoints").starts_realtime(options):
                    one().allow_realtime(str(client.websocket_base_url or client.base_url))
                return request(client, cast_to, options, **streaming)
            standing_in = object.__new__(stand_in(client.__class__))
            standing_in.__dict__.update(client.__dict__, _route=route())
            return standing_in.request(cast_to, options, **streaming)

        @functools.wraps(init)
        def keyless_init(client: Any, *args: Any, **options: Any) -> None:
            try:
                init(client, *args, **options)
            except openai.OpenAIError:
                # Only the SDK knows what would have done for a key; that has changed with its versions.
                template = None if any(options.get(name) for name in _HAS_A_KEY) else route.template()
                if template is None or template._route.policy.leaves_lan:  # noqa: SLF001 - our own
                    raise
                init(client, *args, **{**options, "api_key": route.no_key})

        kind.request = routed_request
        kind.__init__ = keyless_init

    def restore(self) -> None:
        """Put back what was there; what was inherited is inherited again."""
        for name, found in self._found.items():
            if found is _MISSING:
                delattr(self._kind, name)
            else:
                setattr(self._kind, name, found)


class _Sockets:
    """The libraries that open WebSockets, made to ask before they open a realtime session."""

    def __init__(self, route: _OneRoute) -> None:
        self._route = route
        self._found: list[tuple[Any, str, Any]] = []
        self._watch = Watch(_SOCKETS, self._patch)
        for name in _SOCKETS:
            if name in sys.modules:
                self._patch(sys.modules[name])
        sys.meta_path.insert(0, self._watch)

    def restore(self) -> None:
        """Put back what was there."""
        sys.meta_path.remove(self._watch)
        while self._found:
            setattr(*self._found.pop())

    def _patch(self, module: Any) -> None:
        name = _SOCKETS[module.__name__]
        if name == "ClientSession":
            kind = module.ClientSession
            self._replace(kind, "ws_connect", lambda session, url, *_: str(session._build_url(url)))  # noqa: SLF001 - no public name
        else:
            self._replace(module, name, lambda url, *_: str(url))

    def _replace(self, holder: Any, name: str, url_of: Callable[..., str]) -> None:
        original = getattr(holder, name)

        @functools.wraps(original)
        def asked(*args: Any, **options: Any) -> Any:
            # Each library has it as its only argument or its first but `self`, by name or by position.
            named = [options[key] for key in ("url", "uri") if key in options]
            url = url_of(*args, *named)
            if _ours("endpoints").is_realtime(url):
                self._route().allow_realtime(url)
            return original(*args, **options)

        self._found.append((holder, name, original))
        setattr(holder, name, asked)


@functools.cache
def _ours(module: str) -> Any:
    # When needed, not above: under `localwhisper run` the SDK may be loaded by a module of ours, in whose middle this
    # one is then loaded.
    return import_module(f"localwhisper_client.{module}")
