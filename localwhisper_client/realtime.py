"""Realtime transcription: which sessions go to a local server, to which one, and what they may take there.

A session streams audio over a WebSocket that the SDK or a voice framework opens. Before that, a `RealtimeCall` asks the
local servers, by the rules of any other call, whether they are ready. No audio is sent for that. Once the WebSocket is
open, the session stays with its server.
"""

from __future__ import annotations

import functools
import random
import time
from contextlib import closing
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import anyio
import openai

from localwhisper_client import _background
from localwhisper_client._http import http
from localwhisper_client.call import Pending, Routed
from localwhisper_client.errors import explained
from localwhisper_client.events import remember
from localwhisper_client.lan.health import readiness
from localwhisper_client.lan.servers import belongs_to_lan
from localwhisper_client.routing.backend import Backend
from localwhisper_client.routing.plan import Call, Outcome, Try, Verdict, Wait
from localwhisper_client.settings import without_credentials
from localwhisper_client.shared import openai_models

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from localwhisper_client.call import Route
    from localwhisper_client.lan.servers import LocalServer

LONGEST_WAIT = 600.0
"""Seconds for which `wait` tries to open a session that has no client with a timeout: the SDK's own default."""

_MODELS = frozenset((*openai_models.NAMES, *openai_models.LIVE_NAMES))
# All that goes to a local server of a session's query and headers.
_QUERY = ("intent", "model")
_HEADERS = ("openai-beta", "traceparent", "x-client-request-id")
# With this prefix a browser sends the cloud's key as a sub-protocol.
_KEY_PROTOCOL = "openai-insecure-api-key."
# The first major version of `websockets` that uses a proxy, and can be told not to.
_FIRST_WITH_PROXIES = 15
_AZURE = (openai.AzureOpenAI, openai.AsyncAzureOpenAI)
_OPTIONS = ("extra_headers", "extra_query", "websocket_connection_options")
_KEY_REMEDY = "Set LOCALWHISPER_API_KEY (or local_api_key=) to the key that this server was started with."
_VERSION_REMEDY = (
    "Its version may have no realtime transcription: update localwhisper-server there, and check that "
    "LOCALWHISPER_BASE_URL (or local_base_url=) ends with /v1 and that the server allows this machine's address."
)


def transcribes(query: Mapping[str, Any], model: object = None) -> bool:
    """Whether a session with this query transcribes; else it is a conversation, or unknown."""
    return query.get("intent") == "transcription" or (model or query.get("model")) in _MODELS


def query_of(url: str) -> dict[str, str]:
    """Return the query of a URL."""
    return dict(parse_qsl(urlsplit(url).query))


def local_url(server: LocalServer[Any], url: str) -> str:
    """Return where a session for this URL is opened at a local server."""
    query = urlencode({name: value for name, value in query_of(url).items() if name in _QUERY})
    return f"{str(server.client.websocket_base_url).rstrip('/')}/realtime?{query}"


def local_headers(server: LocalServer[Any], given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the headers of a session at a local server: its own key, and none of the cloud's."""
    headers = {name: value for name, value in given if name.lower() in _HEADERS}
    return headers if server.api_key is None else {**headers, "Authorization": f"Bearer {server.api_key}"}


def local_protocols(given: Iterable[str] | None) -> list[Any]:
    """Return the sub-protocols that a session offers to a local server: none that holds a key."""
    return [each for each in given or () if not each.startswith(_KEY_PROTOCOL)]


def raise_refusal(server: LocalServer[Any], error: Exception) -> None:
    """Raise the SDK's error for a status with which a local server refused to open a session, if the error has one."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    if not isinstance(status, int):
        return
    url = str(server.client.base_url)
    remedy = _KEY_REMEDY if status == 401 else "" if status in (429, 503) else _VERSION_REMEDY  # noqa: PLR2004 - HTTP statuses
    message = f"{server.backend.name} refused to open a realtime session (status {status}). {remedy}".rstrip()
    response = http.Response(status, request=http.Request("GET", f"{url}realtime"))
    raise server.client._make_status_error(message, body=None, response=response) from error  # noqa: SLF001 - it has no public name


class RealtimeCall(Routed[Any]):
    """Chooses the server of one session; `seconds` is the most that it takes, `None` for no limit."""

    def __init__(self, route: Route[Any], cloud_url: str, seconds: float | None) -> None:
        self._route = route
        self._cloud_url = cloud_url
        self._call = Call(
            route.servers.backends,
            Backend(without_credentials(cloud_url), cloud=True),
            route.policy,
            seconds,
            time.monotonic,
            random.random,
            route.announce,
            finds=route.servers.finds,
            wakes=route.servers.wakes,
            measures=False,
        )

    def choices(self) -> Generator[Wait | Pending]:
        """Yield what the driver must do until the server is chosen."""
        with closing(self.steps()) as steps:
            for step in steps:
                if not isinstance(step, Try):
                    yield step
                elif step.backend.cloud:
                    self.outcome = Outcome(Verdict.ANSWERED)
                else:
                    server = self._route.servers.server(step.backend)
                    work = _background.start(readiness, str(server.client.base_url), self._connect_timeout(step))
                    yield Pending(work, None)
                    self.outcome = work.result()

    def _connect_timeout(self, step: Try) -> float:
        longest = self._route.settings.connect_timeout
        return longest if step.seconds is None else min(longest, step.seconds)

    def choose(self) -> LocalServer[Any] | None:
        """Return the server; `None` for the cloud.

        Raises:
            LocalServerUnavailable: no local server is ready, and the policy forbids the cloud.

        """
        for step in self.choices():
            match step:
                case Wait():
                    time.sleep(step.seconds)
                case Pending():
                    _background.wait(step.work, step.seconds)
        return self._result()

    async def choose_async(self) -> LocalServer[Any] | None:
        """Do as `choose` does."""
        for step in self.choices():
            match step:
                case Wait():
                    await anyio.sleep(step.seconds)
                case Pending():
                    await _background.wait_async(step.work, step.seconds)
        return self._result()

    def _result(self) -> LocalServer[Any] | None:
        ending = self.ending
        remember(ending.summary)
        if ending.outcome.verdict is not Verdict.ANSWERED:
            unsent = http.Request("GET", self._cloud_url)
            raise explained(ending, unsent, wants_cloud=self._route.settings.wants_cloud)
        backend = next((each for each in self._call.servers if each.name == ending.summary.backend), None)
        return None if backend is None else self._route.servers.server(backend)


def routes_itself(client: Any) -> bool:
    """Whether an SDK client is one of ours, and its sessions need no other routing."""
    return hasattr(client, "_route") or isinstance(client, StandIn) or belongs_to_lan(client)


def manager(resource: Any, client: Any, route: Callable[[], Route[Any]], options: Mapping[str, Any]) -> Any:
    """Return the SDK's connection manager for a transcription. On entering, it chooses the server and connects to it.

    `resource` is `client.realtime` or `client.beta.realtime`; `options` are the arguments of its `connect`. `route` is
    called on entering, in the event loop of an async client, whose kind the route's servers must be of.
    """
    session = _Session(client, route, options)
    made: Any = type(resource)(session.stand_in).connect(**session.options)
    # The class is changed, since handlers that are chained on the manager return the manager itself.
    made.__class__ = _routed_class(made.__class__)
    made.session = session
    return made


class StandIn:
    """The client that the SDK's manager connects with: the program's own, or that of the chosen server."""

    def __init__(self, client: Any) -> None:
        self.chosen = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.chosen, name)

    @property  # type: ignore[misc] # the SDK asks whether it is Azure's
    def __class__(self) -> Any:
        return type(self.chosen)


class _Session:
    """One session of the SDK's: its options change with the server that is chosen."""

    def __init__(self, client: Any, route: Callable[[], Route[Any]], options: Mapping[str, Any]) -> None:
        self._client, self._route = client, route
        self._given = {name: dict(options.get(name) or {}) for name in _OPTIONS}
        self.options = {**options, **{name: dict(value) for name, value in self._given.items()}}
        self.stand_in = StandIn(client)
        self._server: LocalServer[Any] | None = None

    def call(self) -> RealtimeCall:
        timeout = self._client.timeout
        url = str(self._client.websocket_base_url or self._client.base_url)
        return RealtimeCall(self._route(), url, timeout.read if hasattr(timeout, "read") else timeout)

    def use(self, server: LocalServer[Any] | None) -> None:
        """Connect to this server, or to the cloud."""
        self._server = server
        headers, query, connection = ({**self._given[name]} for name in _OPTIONS)
        if server is not None:
            headers = local_headers(server, headers.items())
            headers.setdefault("Authorization", openai.Omit())
            query = {name: value for name, value in query.items() if name in _QUERY}
            if isinstance(self._client, _AZURE) and self.options.get("model") not in _MODELS:
                # With Azure, the model is the name of the user's own deployment. Every server accepts OpenAI's.
                query["model"] = openai_models.WHISPER_1
            if connection.get("subprotocols"):
                connection["subprotocols"] = local_protocols(connection["subprotocols"]) or None
            if proxies():
                connection["proxy"] = None
        for name, value in zip(_OPTIONS, (headers, query, connection), strict=True):
            self.options[name].clear()
            self.options[name].update(value)
        self.stand_in.chosen = self._client if server is None else server.client

    def fault(self, error: Exception) -> None:
        if self._server is not None:
            raise_refusal(self._server, error)


@functools.cache
def proxies() -> bool:
    """Whether the installed `websockets` would use a proxy of the environment, which may be outside of the LAN."""
    try:
        version: str = import_module("websockets.version").version
    except ImportError:
        return False  # the SDK says what to install
    return int(version.partition(".")[0]) >= _FIRST_WITH_PROXIES


class _Manager:
    session: _Session

    def __enter__(self) -> Any:
        self.session.use(self.session.call().choose())
        try:
            return super().__enter__()  # type: ignore[misc] # the SDK's, next in order
        except Exception as error:
            self.session.fault(error)
            raise

    enter = __enter__


class _AsyncManager:
    session: _Session

    async def __aenter__(self) -> Any:
        self.session.use(await self.session.call().choose_async())
        try:
            return await super().__aenter__()  # type: ignore[misc] # as above
        except Exception as error:
            self.session.fault(error)
            raise

    enter = __aenter__


@functools.cache
def _routed_class(sdk_class: Any) -> Any:
    ours = _AsyncManager if hasattr(sdk_class, "__aenter__") else _Manager
    return type(sdk_class.__name__, (ours, sdk_class), {})
