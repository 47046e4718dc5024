"""The upstream: passes chat, embeddings and speech synthesis on to OpenAI, and never a recording to transcribe.

A bot whose OPENAI_BASE_URL points to this server asks it for everything. What is not speech-to-text goes to the
upstream with the caller's own key, streamed both ways, as if the bot had asked there.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import anyio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from localwhisper_client._http import http
from localwhisper_server.api.access_control import KEY_HEADER, contains_key
from localwhisper_server.api.middleware import hung_up, unless_gone
from localwhisper_server.errors import Busy, NotFound, ServerError, UpstreamFailed, UpstreamTimeout

logger = logging.getLogger(__name__)

# The route's name in the metrics for all that goes to the upstream.
ROUTE = SimpleNamespace(path="upstream")
PREFIX = b"/v1/"
CONNECT_SECONDS = 5.0
# The SDKs' own timeout: a model may take minutes before its first word.
READ_SECONDS = 600.0
# For the list of models, for which a program waits before it shows anything, and its most bytes.
LIST_SECONDS = 5.0
MOST_LISTED = 4 * 1024 * 1024
OK, UNAUTHORIZED, MOST_STATUS = 200, 401, 600

# RFC 9110 §7.6.1: these are for the next hop alone.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
# This server answers `expect`. Cookies may belong to other pages on this machine. The rest would reveal addresses and
# names of the LAN.
KEPT_FROM_UPSTREAM = HOP_BY_HOP.union(
    b"cookie expect forwarded host origin referer via x-forwarded-for x-forwarded-host x-forwarded-proto "
    b"x-real-ip".split(),
    [KEY_HEADER.encode()],
)
FOR_A_BODY = frozenset(b"accept-encoding content-length content-type content-encoding range".split())
# uvicorn sends its own date; the others speak for the upstream's host, not for this one.
KEPT_FROM_CALLER = HOP_BY_HOP.union(b"set-cookie date server alt-svc strict-transport-security".split())
CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key"})
# Of all that is below /audio, the one path that takes no recording.
SPEECH_SYNTHESIS = (b"audio", b"speech")
SOUND = (b"audio/", b"video/", b"application/ogg", b"application/x-ogg", b"application/mp4")
OUR_OWN = frozenset({b"transcriptions", b"translations"})

Headers = list[tuple[bytes, bytes]]


def may_leave(raw_path: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> bool:
    """Whether a request may be passed on: its path is below /v1, plain, and not one that takes recordings.

    A path that can be read in two ways (dots, doubled or encoded slashes) is not passed on: the upstream may read it
    the other way. Neither is a body whose type is sound or film.
    """
    if not raw_path.startswith(PREFIX):
        return False
    segments = raw_path[len(PREFIX) :].split(b"/")
    decoded = [unquote_to_bytes(segment).lower() for segment in segments]
    if decoded[-1] == b"" and len(decoded) > 1:
        decoded.pop()
    plain = all(
        segment not in (b"", b".", b"..") and not set(segment) & set(b"/\\%;?#") and min(segment) > ord(" ")
        for segment in decoded
    )
    kinds = [value.strip(b" \t\"'").lower() for value in _values(headers, b"content-type")]
    form = any(kind.startswith(b"multipart/") for kind in kinds)
    return (
        plain
        and (decoded[0] != b"audio" or (tuple(decoded) == SPEECH_SYNTHESIS and not form))
        and decoded[0] != b"realtime"  # takes sound
        and not OUR_OWN.intersection(decoded)
        and not any(kind.startswith(SOUND) for kind in kinds)
    )


def to_upstream(headers: Iterable[tuple[bytes, bytes]], keys: Sequence[str], own_key: str | None = None) -> Headers:
    """Return the headers to pass on, without any that has one of this server's `keys` in whatever form.

    `own_key` is added where no credentials are left.
    """
    kept = [(name, value) for name, value in without(headers, KEPT_FROM_UPSTREAM) if not contains_key(value, keys)]
    if own_key is not None and not CREDENTIALS.intersection(name for name, _ in kept):
        kept.append((b"authorization", b"Bearer " + own_key.encode()))
    return kept


def without(headers: Iterable[tuple[bytes, bytes]], unwanted: frozenset[bytes]) -> Headers:
    """Return headers in lower case, without the unwanted ones and those that a `Connection` header names."""
    headers = [(name.lower(), value) for name, value in headers]
    named = {token.strip().lower() for value in _values(headers, b"connection") for token in value.split(b",")}
    return [(name, value) for name, value in headers if name not in unwanted | named]


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for other, value in headers if other == name]


class Upstream:
    """An ASGI application that passes requests on to `base_url`, which replaces /v1. Close it at the end.

    `keys` are this server's own, which are never passed on. `own_key` is sent for a caller who has no credentials of
    the upstream's.
    """

    def __init__(
        self, base_url: str, *, keys: Sequence[str] = (), own_key: str | None = None, transport: Any = None
    ) -> None:
        self._base = http.URL(base_url.rstrip("/") + "/")
        self._keys = keys
        self._own_key = own_key
        timeout = http.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS)
        # The caller follows redirects. The environment's proxies apply: the upstream may be reachable by them alone.
        self._client = http.AsyncClient(timeout=timeout, follow_redirects=False, transport=transport)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and its answer back; when the caller hangs up, end the request to the upstream.

        Raises:
            NotFound: the request may not leave the LAN.
            ClientDisconnect: the caller hung up.
            Busy, UpstreamFailed, UpstreamTimeout: there is no answer.

        """
        scope["route"] = ROUTE
        if scope["type"] != "http" or not may_leave(scope["raw_path"], scope["headers"]):
            raise NotFound(scope.get("method", "GET"), scope["path"])
        body_read = anyio.Event()

        async def body() -> AsyncIterator[bytes]:
            async for part in Request(scope, receive).stream():
                yield part
            body_read.set()

        async def gone() -> None:
            await body_read.wait()
            await hung_up(receive)

        async def relay() -> None:
            async with self._answer(request) as response:
                # Raw: compressed parts stay compressed.
                headers = without(response.headers.raw, KEPT_FROM_CALLER)
                await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
                async for part in response.aiter_raw():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        content = body() if _has_body(scope["headers"]) else None
        if content is None:
            body_read.set()
        pairs = [pair for pair in scope["query_string"].split(b"&") if pair and not contains_key(pair, self._keys)]
        request = http.Request(
            scope["method"],
            self._url(scope["raw_path"][len(PREFIX) :] + (b"?" + b"&".join(pairs) if pairs else b"")),
            headers=to_upstream(scope["headers"], self._keys, self._own_key),
            content=content,
        )
        await unless_gone(gone(), relay())

    async def models(self, headers: Iterable[tuple[bytes, bytes]]) -> list[dict[str, Any]]:
        """Return the upstream's models for a caller with these headers; none if it does not give the list."""
        try:
            status, body = await self.get("models", headers)
            listed = json.loads(body)["data"] if status == OK else []
            return [model for model in listed if isinstance(model["id"], str)]
        except ServerError:
            return []  # logged already
        except (ValueError, TypeError, KeyError, RecursionError):
            logger.warning("%s gave a list of models that cannot be read", self._base.host)
            return []

    async def get(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, bytes]:
        """Return status and body of a small answer on a path below /v1.

        Raises:
            NotFound: the path may not be asked for.
            Busy, UpstreamFailed, UpstreamTimeout: there is no answer.

        """
        target = quote(path).encode()
        if not may_leave(PREFIX + target):
            raise NotFound("GET", f"/v1/{path}")
        # Uncompressed. The other headers may say whose models to list.
        asking = without(to_upstream(headers, self._keys, self._own_key), FOR_A_BODY)
        request = http.Request("GET", self._url(target), headers=[*asking, (b"accept-encoding", b"identity")])
        body = b""
        try:
            async with asyncio.timeout(LIST_SECONDS), self._answer(request) as response:
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > MOST_LISTED:
                        raise UpstreamFailed(f"The answer of {self._base.host} is too long.")
        except TimeoutError as failure:
            raise self._named(http.ReadTimeout("")) from failure
        if response.status_code == UNAUTHORIZED and self._own_key is None:
            logger.info("%s wants a key for its list of models: --upstream-api-key gives it one", self._base.host)
        return response.status_code, body

    def _url(self, target: bytes) -> Any:
        return self._base.copy_with(raw_path=self._base.raw_path + target)

    @contextlib.asynccontextmanager
    async def _answer(self, request: Any) -> AsyncIterator[Any]:
        """Give the upstream's answer.

        Raises:
            Busy, UpstreamFailed, UpstreamTimeout: there is none, or its end is missing.

        """
        try:
            response = await self._client.send(request, stream=True)
            try:
                if not OK <= response.status_code < MOST_STATUS:
                    logger.warning("%s answered with status %d", self._base.host, response.status_code)
                    raise self._failed(f"answered with the status {response.status_code} that HTTP does not have")
                yield response
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        except http.HTTPError as failure:
            raise self._named(failure) from failure

    def _named(self, failure: Exception) -> ServerError:
        """Return the error to answer with, and log the cause."""
        host = self._base.host
        match failure:
            case http.PoolTimeout():
                return Busy(f"Too many requests are being passed on to {host}. Try again later.", retry_after=1)
            case http.ConnectTimeout() | http.ConnectError():
                logger.warning("%s could not be reached: %s", host, failure)
                return self._failed("could not be reached")
            case http.TimeoutException():
                logger.warning("%s did not answer in time", host)
                return self._failed("did not answer in time", UpstreamTimeout)
            case _:
                logger.warning("%s broke off: %s", host, failure)
                return self._failed("broke off its answer")

    def _failed(self, how: str, kind: type[UpstreamFailed] = UpstreamFailed) -> UpstreamFailed:
        return kind(f"This server passes such requests on to {self._base.host}, which {how}.")


def _has_body(headers: Headers) -> bool:
    return bool(_values(headers, b"transfer-encoding")) or any(
        value.strip() != b"0" for value in _values(headers, b"content-length")
    )
