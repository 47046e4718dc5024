"""The servers on the LAN: one inner SDK client for each, and what a request must lose before it goes there."""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit, urlunsplit

import openai

from localwhisper_client import _forks
from localwhisper_client.lan import hooks, transport
from localwhisper_client.lan.hooks import AUTO
from localwhisper_client.lan.probe import Prober
from localwhisper_client.routing.steps import Backend
from localwhisper_client.settings import is_openai

if TYPE_CHECKING:
    from localwhisper_client.lan.hooks import Resolver, Waker
    from localwhisper_client.settings import Settings

ClientT = TypeVar("ClientT", openai.OpenAI, openai.AsyncOpenAI)

_KEYLESS = "no-key"
# Headers a call may bring along; every other could be the cloud's credential under some gateway's name.
_HARMLESS = ("content-type", "accept", "x-stainless-", "____stainless", "x-client-request-id", "traceparent")


class Server(Generic[ClientT]):
    """One server on the LAN."""

    def __init__(self, url: str, settings: Settings, kind: type[ClientT]) -> None:
        self.backend = Backend(without_credentials(url))
        self.prober = Prober(self.backend, url, settings.connect_timeout)
        self.client: ClientT = kind(
            api_key=settings.local_api_key or _KEYLESS,
            base_url=url,
            max_retries=0,
            http_client=transport.http_client(kind, url),
        )
        # The SDK fills these from the environment, and they are the cloud's.
        self.client.organization = None
        self.client.project = None
        self.client.webhook_secret = None
        self.client._custom_headers = {}  # noqa: SLF001 - where OPENAI_CUSTOM_HEADERS ends up; there is no public name
        if hasattr(self.client, "admin_api_key"):
            self.client.admin_api_key = None
        self._keyless = settings.local_api_key is None
        self._connect_timeout = settings.connect_timeout

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


class LocalServers(Generic[ClientT]):
    """All servers on the LAN, given and found; shared by a client and its copies."""

    def __init__(
        self, settings: Settings, kind: type[ClientT], *, resolver: Resolver | None = None, waker: Waker | None = None
    ) -> None:
        self.settings = settings
        self._kind: type[ClientT] = kind
        self._resolver = resolver
        if resolver is None and AUTO in settings.local_base_urls:
            self._resolver = hooks.resolver()
        self._waker = waker
        if waker is None and settings.wake is not None:
            self._waker = hooks.waker(settings.wake)
        _forks.renewed(self._renew)
        self._current()

    def _renew(self) -> None:
        # Connections, and what was learnt by the way: all of it may be in use by the parent's other threads.
        self._lock = threading.Lock()
        self._servers: dict[str, Server[ClientT]] = {}
        self._found: tuple[str, ...] = ()

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Those known now: the given ones, and the found ones of the last `find()`."""
        return tuple(server.backend for server in self._current())

    def _current(self) -> list[Server[ClientT]]:
        urls: dict[str, None] = {}
        for url in self.settings.local_base_urls:
            # Whatever answers to a search is not trusted to name the cloud.
            wanted = [each for each in self._found if not is_openai(each)] if url == AUTO else [url]
            urls.update(dict.fromkeys(wanted))
        with self._lock:
            for url in urls:
                if url not in self._servers:
                    self._servers[url] = Server(url, self.settings, self._kind)
            return [self._servers[url] for url in urls]

    def moved(self, settings: Settings) -> LocalServers[ClientT]:
        """Return another lan, which is found and woken in the same way."""
        return LocalServers(settings, self._kind, resolver=self._resolver, waker=self._waker)

    @property
    def servers(self) -> list[Server[ClientT]]:
        """Every server ever known."""
        self._current()
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
        """Look for the servers on the LAN and return all; may block. `lost`: one that was found is not there."""
        if self._resolver is not None:
            if lost:
                self._resolver.forget()
            self._found = self._resolver.urls()
        return self.backends

    def wake(self) -> bool:
        """Wake the machine on the LAN; return whether that was done. May block."""
        return self._waker is not None and self._waker.wake(time.monotonic())

    def server(self, backend: Backend) -> Server[ClientT]:
        """Return the server that the routing knows as this backend."""
        # By its name: a call that forks, in a callback, goes on in the child with the backend of the parent.
        return next(server for server in self.servers if server.backend.name == backend.name)


def without_credentials(url: str) -> str:
    """Return the URL without the user and password that may be in it, fit for a log."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _harmless(name: str) -> bool:
    return name.lower().startswith(_HARMLESS)


def belongs_to_lan(client: Any) -> bool:
    """Whether an SDK client is a server's inner one."""
    return isinstance(client._client, (transport.SyncHTTP, transport.AsyncHTTP))  # noqa: SLF001 - there is no public name
