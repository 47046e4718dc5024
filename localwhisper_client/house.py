"""The servers in the house: one inner SDK client for each, and what a request must lose before it goes there."""

from __future__ import annotations

import asyncio
import copy
import math
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit, urlunsplit

import anyio
import openai

from localwhisper_client import answer, hooks, names
from localwhisper_client._http import http
from localwhisper_client.config import health_url, is_openai
from localwhisper_client.hooks import AUTO
from localwhisper_client.probe import Prober
from localwhisper_client.steps import Backend

if TYPE_CHECKING:
    from localwhisper_client.config import Settings
    from localwhisper_client.hooks import Resolver, Waker

ClientT = TypeVar("ClientT", openai.OpenAI, openai.AsyncOpenAI)

_KEYLESS = "no-key"
# Seconds an idle connection is kept. Servers drop theirs after five (uvicorn's default), and a box that was switched
# off drops none: a call on a dead connection would look like a fault of a server that is well, or hang.
_IDLE = 2.0
# A box that loses power while it works says nothing more; the kernel asks after it in its stead, and gives up after
# ten seconds. Each system has the options that it has.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]
# Headers a call may bring along; every other could be the cloud's credential under some gateway's name.
_HARMLESS = ("content-type", "accept", "x-stainless-", "____stainless", "x-client-request-id", "traceparent")


class _SyncHTTP(openai.DefaultHttpxClient):
    """An HTTP client whose timeout is for an answer as a whole; it closes itself when forgotten, as the SDK's does."""

    def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request and read its answer, however slowly that comes, within the time for reading."""
        seconds = _seconds(request)
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        response = super().send(request, stream=True, **options)
        if not stream:
            answer.read_whole(response, deadline)
        return response

    def __del__(self) -> None:
        if not self.is_closed:
            self.close()


class _AsyncHTTP(openai.DefaultAsyncHttpxClient):
    """The same; what it can do when it is forgotten depends on a loop being there."""

    async def send(self, request: Any, **options: Any) -> Any:
        """Send a request, as the other does."""
        try:
            with anyio.fail_after(_seconds(request)):
                return await super().send(request, **options)
        except TimeoutError as error:
            raise http.ReadTimeout("the answer came too slowly", request=request) from error

    def __del__(self) -> None:
        if not self.is_closed:
            try:
                loop = asyncio.get_running_loop()
            except (RuntimeError, AttributeError):
                # No loop; or the interpreter is ending, and has taken the module's names away.
                return
            self._closing = loop.create_task(self.aclose())


def _seconds(request: Any) -> float | None:
    seconds: float | None = request.extensions["timeout"]["read"]
    return seconds


_HTTP: dict[type, tuple[Any, Any]] = {
    openai.OpenAI: (_SyncHTTP, http.HTTPTransport),
    openai.AsyncOpenAI: (_AsyncHTTP, http.AsyncHTTPTransport),
}


class Server(Generic[ClientT]):
    """One server in the house."""

    def __init__(self, url: str, settings: Settings, kind: type[ClientT]) -> None:
        self.backend = Backend(without_credentials(url))
        self.prober = Prober(self.backend, health_url(url), settings.connect_timeout)
        # No proxy of the environment's: one would carry the audio out of the house, and could not reach it anyway.
        # No redirects, for the same reason. Certificates are read only where the address has one.
        make_http, make_transport = _HTTP[kind]
        http_client = make_http(
            follow_redirects=False,
            trust_env=False,
            transport=make_transport(
                trust_env=False,
                verify=url.startswith("https:"),
                limits=http.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=_IDLE),
                socket_options=_KEEPALIVE,
            ),
        )
        self.client: ClientT = kind(
            api_key=settings.lan_key or _KEYLESS, base_url=url, max_retries=0, http_client=http_client
        )
        # The SDK fills these from the environment, and they are the cloud's.
        self.client.organization = None
        self.client.project = None
        self.client.webhook_secret = None
        self.client._custom_headers = {}  # noqa: SLF001 - where OPENAI_CUSTOM_HEADERS ends up; there is no public name
        if hasattr(self.client, "admin_api_key"):
            self.client.admin_api_key = None
        self._name = names.Name(urlsplit(url).hostname or "")
        self._keyless = settings.lan_key is None
        self._connect_timeout = settings.connect_timeout

    def find_name(self, seconds: float | None) -> None:
        """Look the server's name up within the time for a connection, which the HTTP library does not bound.

        Raises:
            ConnectTimeout (of the HTTP library): nobody could say in time where it is.

        """
        allowed = self._connect_timeout if seconds is None else min(self._connect_timeout, seconds)
        if not self._name.known(allowed):
            raise http.ConnectTimeout(f"the name {self._name.host} was not found in time")

    def options(self, options: Any, files: Any, seconds: float | None, *, raw: str) -> Any:
        """Return the request as it goes to this server: none of the cloud's headers or query, and our own timeouts.

        `raw` is how the SDK is to hand over the response, so that it can be looked at before the caller gets it.
        """
        mine = copy.copy(options)
        given = options.headers if isinstance(options.headers, dict) else {}
        headers: dict[str, Any] = {name: value for name, value in given.items() if _harmless(name)}
        if self._keyless:
            headers["Authorization"] = openai.Omit()
        # A compressed body would keep a stream's first event inside the compressor; on a LAN it saves nothing.
        headers["Accept-Encoding"] = "identity"
        headers["X-Stainless-Raw-Response"] = raw
        mine.headers = headers
        mine.params = {}
        mine.files = files
        mine.max_retries = 0
        mine.follow_redirects = False
        connect = self._connect_timeout if seconds is None else min(self._connect_timeout, seconds)
        mine.timeout = openai.Timeout(seconds, connect=connect)
        return mine


class House(Generic[ClientT]):
    """All servers in the house, given and found; shared by a client and its copies."""

    def __init__(
        self, settings: Settings, kind: type[ClientT], *, resolver: Resolver | None = None, waker: Waker | None = None
    ) -> None:
        self.settings = settings
        self._kind: type[ClientT] = kind
        self._lock = threading.Lock()
        self._servers: dict[str, Server[ClientT]] = {}
        self._resolver = resolver
        if resolver is None and AUTO in settings.lan_urls:
            self._resolver = hooks.resolver()
        self._waker = waker
        if waker is None and settings.wake is not None:
            self._waker = hooks.waker(settings.wake)
        self.backends: tuple[Backend, ...] = self._backends(())
        """Those known now: the given ones, and the found ones of the last `find()`."""

    def moved(self, settings: Settings) -> House[ClientT]:
        """Return another house, which is found and woken in the same way."""
        return House(settings, self._kind, resolver=self._resolver, waker=self._waker)

    @property
    def servers(self) -> list[Server[ClientT]]:
        """Every server ever known."""
        return list(self._servers.values())

    @property
    def finds(self) -> bool:
        """Whether some servers are to be found by `find()`."""
        return self._resolver is not None

    @property
    def wakes(self) -> bool:
        """Whether there is a machine to wake."""
        return self._waker is not None

    def find(self, lost: bool = False) -> tuple[Backend, ...]:  # noqa: FBT001, FBT002 - passed on by position
        """Look for the servers in the house and return all; may block. `lost`: one that was found is not there."""
        if self._resolver is not None:
            if lost:
                self._resolver.forget()
            self.backends = self._backends(self._resolver.urls())
        return self.backends

    def wake(self) -> bool:
        """Wake the machine in the house; return whether that was done. May block."""
        return self._waker is not None and self._waker.wake(time.monotonic())

    def server(self, backend: Backend) -> Server[ClientT]:
        """Return the server that the routing knows as this backend."""
        return next(server for server in self.servers if server.backend is backend)

    def _backends(self, found: tuple[str, ...]) -> tuple[Backend, ...]:
        urls: dict[str, None] = {}
        for url in self.settings.lan_urls:
            # Whatever answers to a search is not trusted to name the cloud.
            wanted = [each for each in found if not is_openai(each)] if url == AUTO else [url]
            urls.update(dict.fromkeys(wanted))
        with self._lock:
            for url in urls:
                if url not in self._servers:
                    self._servers[url] = Server(url, self.settings, self._kind)
            return tuple(self._servers[url].backend for url in urls)


def without_credentials(url: str) -> str:
    """Return the URL without the user and password that may be in it, fit for a log."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _harmless(name: str) -> bool:
    return name.lower().startswith(_HARMLESS)


def belongs_to_house(client: Any) -> bool:
    """Whether an SDK client is a server's inner one."""
    return isinstance(client._client, (_SyncHTTP, _AsyncHTTP))  # noqa: SLF001 - there is no public name
