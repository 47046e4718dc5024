"""Changes what opens WebSockets, so that a transcription goes to a local server and no other session leaves the LAN.

| changed | for | transcriptions | other sessions |
|---|---|---|---|
| `connect` of the SDK's realtime resources | programs with the SDK | to a local server | as below |
| `connect` of `websockets`, `ws_connect` of aiohttp | voice frameworks | to a local server | if allowed |
| `parse_uri`, with which `websockets` reads an address | any other way into it | if allowed | if allowed |

"If allowed" means: refused unless the policy allows the cloud or the address is on the LAN.
"""

from __future__ import annotations

import copy
import functools
import sys
from typing import TYPE_CHECKING, Any

from localwhisper_client import request
from localwhisper_client.patch.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

_SDK = ("openai.resources.realtime.realtime", "openai.resources.beta.realtime.realtime")
_WEBSOCKETS = ("websockets.asyncio.client", "websockets.sync.client", "websockets.legacy.client")
_AIOHTTP = "aiohttp.client"
_NOWHERE = "wss://localhost/"
# What a program says of the connection to the cloud, and would be wrong for one to a local server.
_CONNECTION = (
    "auth", "fingerprint", "host", "params", "port", "proxy", "proxy_auth", "proxy_headers", "proxy_server_hostname",
    "proxy_ssl", "server_hostname", "sock", "ssl", "ssl_context", "verify_ssl",
)  # fmt: skip


class Sockets:
    """What is changed, and how. `route` and `async_route` give the route of each kind of client.

    `replace` sets an attribute until `uninstall`.
    """

    def __init__(
        self, route: Callable[[], Any], async_route: Callable[[], Any], replace: Callable[[Any, str, Any], None]
    ) -> None:
        self._route, self._set = route, replace
        self._sdk_routes = {"Realtime": route, "AsyncRealtime": async_route}

    def patch(self) -> Callable[[], None]:
        """Change the modules that are loaded, and each other when it is loaded; return what ends that."""
        names = (*_SDK, *_WEBSOCKETS, _AIOHTTP)
        watch = Watch(names, self._patch)
        for name in names:
            if name in sys.modules:
                self._patch(sys.modules[name])
        sys.meta_path.insert(0, watch)
        return functools.partial(sys.meta_path.remove, watch)

    def _patch(self, module: Any) -> None:
        name = module.__name__
        if name in _SDK:
            for kind, route in self._sdk_routes.items():
                self._replace(getattr(module, kind), "connect", functools.partial(self._sdk, route))
        elif name == _AIOHTTP:
            self._replace(module.ClientSession, "_ws_connect", self._aiohttp)
        else:
            self._replace(module, "parse_uri", self._checked)
            if ".asyncio." in name:
                self._patch_connect(module.connect)
            elif ".sync." in name:
                self._replace(module, "connect", self._sync)

    def _replace(self, holder: Any, name: str, changed: Callable[[Any], Any]) -> None:
        original = getattr(holder, name)
        self._set(holder, name, functools.wraps(original)(changed(original)))

    @property
    def _realtime(self) -> Any:
        from localwhisper_client import realtime  # noqa: PLC0415 - see the docstring of `installation`

        return realtime

    def _call(self, url: str) -> Any:
        """Return the call that chooses a server for a session at this URL; `None` if the program connects itself.

        Raises:
            CloudNotAllowed: it is no transcription, and the policy forbids it.

        """
        if not request.is_realtime(url):
            return None
        realtime, route = self._realtime, self._route()
        if not realtime.transcribes(realtime.query_of(url)) or route.keeps_to_lan(url):
            route.allow_realtime(url)
            return None
        return realtime.RealtimeCall(route, url, realtime.LONGEST_WAIT)

    def _sdk(self, route: Any, original: Any) -> Any:
        def connect(resource: Any, **options: Any) -> Any:
            realtime, client = self._realtime, resource._client  # noqa: SLF001 - there is no public name
            asks = realtime.transcribes(options.get("extra_query") or {}, options.get("model"))
            if asks and not realtime.routes_itself(client):
                return realtime.manager(resource, client, route, options)
            return original(resource, **options)

        return connect

    def _checked(self, original: Any) -> Any:
        def parse_uri(uri: str) -> Any:
            if request.is_realtime(uri):
                self._route().allow_realtime(uri)
            return original(uri)

        return parse_uri

    def _patch_connect(self, connect: Any) -> None:
        """Change the class with which asyncio programs connect: it chooses the server each time that it is awaited."""
        init, wait = connect.__init__, connect.__await__

        @functools.wraps(init)
        def start(connecting: Any, uri: str, **options: Any) -> None:
            if self._call(uri) is None:
                init(connecting, uri, **options)
                return
            init(connecting, _NOWHERE, **options)  # it checks the options, and some versions the address too
            connecting.localwhisper_asked = uri, options

        @functools.wraps(wait)
        def awaited(connecting: Any) -> Any:
            asked = vars(connecting).get("localwhisper_asked")
            return wait(connecting) if asked is None else opened(connecting, *asked).__await__()

        async def opened(connecting: Any, uri: str, options: dict[str, Any]) -> Any:
            call = self._call(uri)
            server = None if call is None else await call.choose_async()
            if server is None:
                init(connecting, uri, **options)
                vars(connecting).pop("process_redirect", None)
                return await _Awaitable(wait(connecting))
            init(connecting, self._realtime.local_url(server, uri), **self._local_options(server, options))
            connecting.process_redirect = lambda error: error
            try:
                return await _Awaitable(wait(connecting))
            except Exception as error:
                self._realtime.raise_refusal(server, error)
                raise

        self._set(connect, "__init__", start)
        self._set(connect, "__await__", awaited)

    def _sync(self, original: Any) -> Any:
        def connect(uri: str, **options: Any) -> Any:
            call = self._call(uri)
            server = None if call is None else call.choose()
            if server is None:
                return original(uri, **options)
            try:
                return original(self._realtime.local_url(server, uri), **self._local_options(server, options))
            except Exception as error:
                self._realtime.raise_refusal(server, error)
                raise

        return connect

    def _local_options(self, server: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Return the options of `websockets` for a session at a local server."""
        realtime = self._realtime
        options = {name: value for name, value in given.items() if name not in _CONNECTION}
        options["additional_headers"] = realtime.local_headers(server, _pairs(given.get("additional_headers")))
        options["subprotocols"] = realtime.local_protocols(given.get("subprotocols")) or None
        if realtime.proxies():
            options["proxy"] = None
        return options

    def _aiohttp(self, original: Any) -> Any:
        async def opened(session: Any, url: Any, **options: Any) -> Any:
            whole = session._build_url(url)  # noqa: SLF001 - there is no public name
            if options.get("params"):
                whole = whole.update_query(options["params"])
            call = self._call(str(whole))
            server = None if call is None else await call.choose_async()
            if server is None:
                return await original(session, url, **options)
            realtime = self._realtime
            options = {name: value for name, value in options.items() if name not in _CONNECTION}
            options["headers"] = realtime.local_headers(server, _pairs(options.get("headers")))
            options["protocols"] = realtime.local_protocols(options.get("protocols"))
            local = _bare(session)
            try:
                return await original(local, realtime.local_url(server, str(whole)), **options)
            except Exception as error:
                realtime.raise_refusal(server, error)
                raise
            finally:
                local._connector = None  # noqa: SLF001 - else it complains that it was not closed

        return opened


class _Awaitable:
    """What an object's own `__await__` returned, to be awaited."""

    def __init__(self, steps: Any) -> None:
        self._steps = steps

    def __await__(self) -> Any:
        return self._steps


def _pairs(headers: Any) -> list[tuple[str, Any]]:
    """Return the headers of a program, a mapping or pairs, as pairs."""
    return list(headers.items() if hasattr(headers, "items") else headers or ())


def _bare(session: Any) -> Any:
    """Return a session of aiohttp with the same connections, and without keys, cookies and proxy."""
    local = copy.copy(session)
    local._default_headers = type(session._default_headers)()  # noqa: SLF001 - it has no public names for these
    local._default_auth = local._default_proxy = local._default_proxy_auth = None  # noqa: SLF001 - it has no public name
    local._cookie_jar = sys.modules["aiohttp"].DummyCookieJar()  # noqa: SLF001 - it has no public name
    local._base_url = None  # noqa: SLF001 - it has no public name
    local._trust_env = False  # noqa: SLF001 - it has no public name
    return local
