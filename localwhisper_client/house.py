"""The servers in the house: one inner SDK client for each, and what a request must lose before it goes there."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit, urlunsplit

import openai

from localwhisper_client._http import http
from localwhisper_client.config import health_url
from localwhisper_client.probe import Prober
from localwhisper_client.routing import Backend

if TYPE_CHECKING:
    from localwhisper_client.config import Settings

ClientT = TypeVar("ClientT", openai.OpenAI, openai.AsyncOpenAI)

_KEYLESS = "no-key"
# Seconds an idle connection is kept. Servers drop theirs after five (uvicorn's default), and a box that was switched
# off drops none: a call on a dead connection would look like a fault of a server that is well, or hang.
_IDLE = 2.0
# Headers a call may bring along; every other could be the cloud's credential under some gateway's name.
_HARMLESS = ("content-type", "accept", "x-stainless-", "____stainless", "x-client-request-id", "traceparent")


class _SyncHTTP(openai.DefaultHttpxClient):
    """An HTTP client that closes itself when it is forgotten, as the SDK's own does."""

    def __del__(self) -> None:
        if not self.is_closed:
            self.close()


class _AsyncHTTP(openai.DefaultAsyncHttpxClient):
    """The same; what can be done at that point depends on a loop being there."""

    def __del__(self) -> None:
        if not self.is_closed:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            self._closing = loop.create_task(self.aclose())


_HTTP: dict[type, type] = {openai.OpenAI: _SyncHTTP, openai.AsyncOpenAI: _AsyncHTTP}


class Server(Generic[ClientT]):
    """One server in the house."""

    def __init__(self, url: str, settings: Settings, kind: type[ClientT]) -> None:
        self.backend = Backend(without_credentials(url))
        self.prober = Prober(self.backend, health_url(url), settings.connect_timeout)
        # No proxy of the environment's: one would carry the audio out of the house, and could not reach it anyway.
        # No redirects, for the same reason. Certificates are read only where the address has one.
        make_http: Any = _HTTP[kind]
        http_client = make_http(
            trust_env=False,
            follow_redirects=False,
            verify=url.startswith("https:"),
            limits=http.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=_IDLE),
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
        self._keyless = settings.lan_key is None
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


class House(Generic[ClientT]):
    """All servers in the house, in the order they are asked; shared by a client and its copies."""

    def __init__(self, settings: Settings, kind: type[ClientT]) -> None:
        self.settings = settings
        self.servers: list[Server[ClientT]] = [Server(url, settings, kind) for url in settings.lan_urls]
        self.backends: list[Backend] = [server.backend for server in self.servers]

    def server(self, backend: Backend) -> Server[ClientT]:
        """Return the server that the routing knows as this backend."""
        return next(server for server in self.servers if server.backend is backend)


def without_credentials(url: str) -> str:
    """Return the URL without the user and password that may be in it, fit for a log."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _harmless(name: str) -> bool:
    return name.lower().startswith(_HARMLESS)


def belongs_to_house(client: Any) -> bool:
    """Whether an SDK client is a server's inner one."""
    return isinstance(client._client, tuple(_HTTP.values()))  # noqa: SLF001 - there is no public name
