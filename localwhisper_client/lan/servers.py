"""The local servers: which of them may get audio, an inner SDK client for each, and what a request must lose first."""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

import openai

from localwhisper_client import _background
from localwhisper_client.events import log
from localwhisper_client.lan import discovery, transport, wake
from localwhisper_client.lan.health import Prober
from localwhisper_client.routing.backend import Backend, Breaker
from localwhisper_client.settings import AUTO, is_openai, without_credentials
from localwhisper_client.shared import lan_ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    from localwhisper_client.lan.discovery import Discovery
    from localwhisper_client.lan.wake import Waker
    from localwhisper_client.routing.backend import Rules
    from localwhisper_client.settings import Settings

REMEMBERED = 60.0
"""Seconds for which `Hosts` remembers whether a name is on the LAN."""

ClientT = TypeVar("ClientT", openai.OpenAI, openai.AsyncOpenAI)

_KEYLESS = "no-key"
_SERVER_SETTINGS = ("local_base_urls", "local_api_key", "connect_timeout")
# The only headers of a call that go to a local server. A gateway's key may be in a header of any other name.
_HARMLESS = ("content-type", "accept", "x-stainless-", "____stainless", "x-client-request-id", "traceparent")


class Hosts:
    """Says which hosts are on the LAN, and remembers it; thread-safe. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[bool, float]] = {}
        self._warned: set[str] = set()

    def known(self, url: str) -> bool | None:
        """Whether a URL's host is on the LAN, as far as its spelling or an earlier look-up tells."""
        host = urlsplit(url).hostname or ""
        on_lan, until = self._known.get(host, (None, 0.0))
        return on_lan if self._clock() < until else lan_ranges.settled(host)

    def on_lan(self, url: str, seconds: float) -> bool | None:
        """Whether a URL's host is on the LAN; `None` if its name was not found. Blocks for `seconds` at most."""
        on_lan = self.known(url)
        if on_lan is None:
            host = urlsplit(url).hostname or ""
            found = transport.look_up(host)
            if not _background.wait(found, seconds) or found.exception() is not None:
                return None
            addresses = map(lan_ranges.parse_address, found.result())
            on_lan = lan_ranges.resolved(host, [address for address in addresses if address is not None])
            self._known[host] = (on_lan, self._clock() + REMEMBERED)
        return on_lan

    def warn_if_outside(self, response: Any) -> None:
        """Log once for each host if its answer came from outside the LAN. The user named it, so it is allowed."""
        try:
            peer, *_ = response.extensions["network_stream"].get_extra_info("server_addr")
        except Exception:  # noqa: BLE001 - the connection is closed; each network library has its own error for that
            return
        address = lan_ranges.parse_address(str(peer))
        host = str(response.request.url.host)
        if address is not None and not lan_ranges.on_lan(address) and host not in self._warned:
            self._warned.add(host)
            log.warning("%s (%s) is not on the LAN; it gets audio because it is set as the local server", host, peer)


class LocalServer(Generic[ClientT]):
    """One local server."""

    def __init__(self, url: str, settings: Settings, kind: type[ClientT], rules: Rules | None) -> None:
        self.backend = Backend(without_credentials(url), breaker=Breaker(rules))
        self.prober = Prober(self.backend, url, settings.connect_timeout)
        self.client: ClientT = kind(
            api_key=settings.local_api_key or _KEYLESS,
            base_url=url,
            websocket_base_url=url.replace("http", "ws", 1),
            max_retries=0,
            http_client=transport.http_client(kind, url),
        )
        # The SDK fills these from the environment, where they are the cloud's.
        self.client.organization = None
        self.client.project = None
        self.client.webhook_secret = None
        self.client._custom_headers = {}  # noqa: SLF001 - from OPENAI_CUSTOM_HEADERS; there is no public name
        if hasattr(self.client, "admin_api_key"):
            self.client.admin_api_key = None
        self.api_key = settings.local_api_key
        """The server's key; `None` sends none."""
        self._connect_timeout = settings.connect_timeout

    def options(self, options: Any, files: Any, seconds: float | None, *, raw: str) -> Any:
        """Return the request as it goes to this server: without the cloud's headers and query, with our timeouts.

        `raw` is the SDK's `X-Stainless-Raw-Response`: the response is checked before the caller gets it.
        """
        mine = copy.copy(options)
        given = options.headers if isinstance(options.headers, dict) else {}
        headers: dict[str, Any] = {name: value for name, value in given.items() if name.lower().startswith(_HARMLESS)}
        if self.api_key is None:
            headers["Authorization"] = openai.Omit()
        # A compressor would hold a stream's first event back, and a LAN gains nothing from it.
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
    """All local servers, the given and the found ones; shared by a client and its copies.

    Args:
        settings: the client's.
        kind: `openai.OpenAI` or `openai.AsyncOpenAI`.
        finder: finds servers; by default the process's own, if a base URL is `auto`.
        waker: wakes the machine; by default the one that `LOCALWHISPER_WAKE` sets.
        rules: when a server's breaker opens, and for how long.

    """

    def __init__(
        self,
        settings: Settings,
        kind: type[ClientT],
        *,
        finder: Discovery | None = None,
        waker: Waker | None = None,
        rules: Rules | None = None,
    ) -> None:
        self.settings = settings
        self.hosts = Hosts()
        self._kind: type[ClientT] = kind
        self._rules = rules
        self._finder = finder
        if finder is None and AUTO in settings.local_base_urls:
            self._finder = discovery.shared()
        self._waker = waker
        if waker is None and settings.wake is not None:
            self._waker = wake.Waker(wake.parse(settings.wake))
        _background.renewed(self._renew)
        self._current()

    def _renew(self) -> None:
        # A forked child starts with new connections and breakers: the parent's threads may be using the old ones.
        self._lock = threading.Lock()
        self._servers: dict[str, LocalServer[ClientT]] = {}
        self._found: tuple[str, ...] = ()

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The backends known now: the given ones, and those of the last `find()`."""
        return tuple(server.backend for server in self._current())

    def _current(self) -> list[LocalServer[ClientT]]:
        urls: dict[str, None] = {}
        for url in self.settings.local_base_urls:
            # An announcement on the network must not be able to name the cloud.
            wanted = [each for each in self._found if not is_openai(each)] if url == AUTO else [url]
            urls.update(dict.fromkeys(wanted))
        with self._lock:
            for url in urls:
                if url not in self._servers:
                    self._servers[url] = LocalServer(url, self.settings, self._kind, self._rules)
            return [self._servers[url] for url in urls]

    def with_settings(self, settings: Settings) -> LocalServers[ClientT]:
        """Return the servers of other settings, found and woken in the same way; these, if they are the same."""
        old = self.settings
        if all(getattr(settings, name) == getattr(old, name) for name in _SERVER_SETTINGS):
            return self
        return LocalServers(settings, self._kind, finder=self._finder, waker=self._waker, rules=self._rules)

    @property
    def all(self) -> list[LocalServer[ClientT]]:
        """Every server that was ever known."""
        self._current()
        return list(self._servers.values())

    @property
    def finds(self) -> bool:
        """Whether `find()` may give more servers."""
        return self._finder is not None

    @property
    def wakes(self) -> bool:
        """Whether there is a machine to wake."""
        return self._waker is not None

    def find(self, *, lost: bool = False) -> tuple[Backend, ...]:
        """Find the local servers and return the backends of all. May block. `lost`: a found one cannot be reached."""
        if self._finder is not None:
            if lost:
                self._finder.forget()
            self._found = self._finder.urls()
        return self.backends

    def wake(self) -> bool:
        """Wake the machine; return whether a packet was sent. May block."""
        return self._waker is not None and self._waker.wake(time.monotonic())

    def server(self, backend: Backend) -> LocalServer[ClientT]:
        """Return the server of a backend, by its name: after a fork, the call's backend is still the parent's."""
        return next(server for server in self.all if server.backend.name == backend.name)


def belongs_to_lan(client: Any) -> bool:
    """Whether an SDK client is the inner client of a `LocalServer`."""
    return isinstance(client._client, (transport.SyncHTTP, transport.AsyncHTTP))  # noqa: SLF001 - there is no public name
