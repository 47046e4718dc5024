"""What else OpenAI offers, passed on to it: chat, embeddings, speech synthesis. Never a recording to be transcribed.

A bot of which only OPENAI_BASE_URL was changed asks this server for everything. What is not speech-to-text goes to the
upstream with the caller's own key, streaming both ways, as if it had gone there itself.
"""

import contextlib
import logging
import re
from base64 import b64decode
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import anyio

from localwhisper_client._http import http
from localwhisper_server.asgi import Message, Receive, Scope, Send, header_values
from localwhisper_server.errors import Busy, NotFound, UpstreamFailed, UpstreamSilent
from localwhisper_server.keys import KEY_HEADER

logger = logging.getLogger(__name__)

PREFIX = b"/v1/"
CONNECT_SECONDS = 5.0
# As patient as the SDKs are: a model may think for minutes before its first word.
SILENT_SECONDS = 600.0

# RFC 9110 §7.6.1: what is said to the next hop and no further.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# `expect` was answered here; cookies belong to another site, the browser's other tabs on this machine for one; the
# rest would tell the addresses and names of the house.
KEPT_FROM_UPSTREAM = HOP_BY_HOP | {
    KEY_HEADER,
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"origin",
    b"referer",
    b"via",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
}
# The web server here says the time and its name; who may read an answer is this server's to say.
KEPT_FROM_CALLER = HOP_BY_HOP | {b"set-cookie", b"date", b"server", b"alt-svc", b"strict-transport-security"}
# Whatever lies under /audio is presumed to carry a voice, apart from what makes one.
SPEECH_SYNTHESIS = (b"audio", b"speech")
SOUND = (b"audio/", b"video/", b"application/ogg", b"application/x-ogg", b"application/mp4")
OUR_OWN = frozenset({b"transcriptions", b"translations"})

Headers = list[tuple[bytes, bytes]]

_BETWEEN_WORDS = re.compile(rb'[\s,;"]+')


def may_leave(raw_path: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> bool:
    """Whether a request may be passed on: its path is below /v1, plain, and not one that takes recordings.

    Paths that could be read in two ways (dots, doubled or encoded slashes) are not passed on, since the upstream may
    read them the other way. Neither are bodies that say they are sound or film.
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
    kinds = [value.strip(b" \t\"'").lower() for value in header_values(headers, b"content-type")]
    form = any(kind.startswith(b"multipart/") for kind in kinds)
    return (
        plain
        and (decoded[0] != b"audio" or (tuple(decoded) == SPEECH_SYNTHESIS and not form))
        and decoded[0] != b"realtime"  # a conversation by sound
        and not OUR_OWN.intersection(decoded)
        and not any(kind.startswith(SOUND) for kind in kinds)
    )


def to_upstream(headers: Headers, keys: Sequence[str]) -> Headers:
    """Return the headers to pass on; a key of this server's own stays here, in whatever header and form it came."""
    return [(name, value) for name, value in _without(headers, KEPT_FROM_UPSTREAM) if not _holds_one_of(keys, value)]


def _holds_one_of(keys: Sequence[str], value: bytes) -> bool:
    """Whether a header's value, or a query's, has one of the keys for a word."""
    words = {value.strip(), *_BETWEEN_WORDS.split(value)}
    scheme, _, encoded = value.strip().partition(b" ")
    if scheme.lower() == b"basic":
        with contextlib.suppress(ValueError):
            words |= set(b64decode(encoded).split(b":", 1))
    return any(key.encode() in words for key in keys)


def to_caller(headers: Headers) -> Headers:
    """Return the headers to answer with."""
    return _without(headers, KEPT_FROM_CALLER)


def _without(headers: Headers, unwanted: frozenset[bytes]) -> Headers:
    headers = [(name.lower(), value) for name, value in headers]
    named = {token.strip().lower() for value in header_values(headers, b"connection") for token in value.split(b",")}
    return [(name, value) for name, value in headers if name not in unwanted | named]


class Upstream:
    """An ASGI application that passes requests on to `base_url`, which stands for /v1. Close it at the end.

    `keys` are this server's own, which are never passed on.
    """

    def __init__(self, base_url: str, *, keys: Sequence[str] = (), transport: Any = None) -> None:
        self._base = http.URL(base_url.rstrip("/") + "/")
        self._keys = keys
        timeout = http.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS)
        # Redirects are the caller's to follow. Proxies of the environment apply: they are this machine's way out.
        self._client = http.AsyncClient(timeout=timeout, follow_redirects=False, transport=transport)

    async def aclose(self) -> None:
        """Close what connections are left."""
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and its answer back; ends early, upstream too, when the caller hangs up.

        Raises:
            NotFound: it may not leave the house.
            Busy, UpstreamFailed, UpstreamSilent: there is no answer to pass back.

        """
        if not may_leave(scope["raw_path"], scope["headers"]):
            raise NotFound(scope["method"], scope["path"])
        body = _Body(receive) if _has_body(scope["headers"]) else None
        request = self._request(scope, body)
        failure: Exception | None = None
        async with anyio.create_task_group() as group:

            async def stop_when_gone() -> None:
                if body is not None:
                    await body.complete.wait()
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(stop_when_gone)
            try:
                await self._relay(request, send)
            except _Gone:
                pass
            except Exception as problem:  # noqa: BLE001 - raised below, where no task group wraps it
                failure = problem
            group.cancel_scope.cancel()
        if failure is not None:
            raise self._named(failure) from failure

    def _request(self, scope: Scope, body: "_Body | None") -> Any:
        path = self._base.raw_path + scope["raw_path"][len(PREFIX) :]
        pairs = [
            pair
            for pair in scope["query_string"].split(b"&")
            if pair and not _holds_one_of(self._keys, unquote_to_bytes(pair.partition(b"=")[2]))
        ]
        query = b"?" + b"&".join(pairs) if pairs else b""
        return http.Request(
            scope["method"],
            self._base.copy_with(raw_path=path + query),
            headers=to_upstream(scope["headers"], self._keys),
            content=body.parts() if body is not None else None,
        )

    def _named(self, failure: Exception) -> Exception:
        """Return the error to answer with."""
        host = self._base.host
        if isinstance(failure, http.PoolTimeout):
            return Busy(f"Too many requests are being passed on to {host}. Try again later.", retry_after=1)
        if isinstance(failure, http.ConnectTimeout | http.ConnectError):
            logger.warning("%s could not be reached: %s", host, failure)
            return UpstreamFailed(f"This server passes such requests on to {host}, which could not be reached.")
        if isinstance(failure, http.TimeoutException):
            logger.warning("%s did not answer in time", host)
            return UpstreamSilent(f"This server passes such requests on to {host}, which did not answer in time.")
        if isinstance(failure, http.HTTPError):
            logger.warning("%s broke off: %s", host, failure)
            return UpstreamFailed(f"This server passes such requests on to {host}, which broke off its answer.")
        return failure

    async def _relay(self, request: Any, send: Send) -> None:
        response = await self._client.send(request, stream=True)
        try:
            # As they come, still compressed if they are.
            headers = to_caller(response.headers.raw)
            await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            async for part in response.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()


class _Gone(Exception):
    """The caller hung up in the middle of the body."""


class _Body:
    """A request's body as it arrives."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = anyio.Event()

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body.

        Raises:
            _Gone: there will be no more of it.

        """
        message: Message = {"more_body": True}
        while message["more_body"]:
            message = {"more_body": False} | dict(await self._receive())
            if message["type"] == "http.disconnect":
                raise _Gone
            if message.get("body"):
                yield message["body"]
        self.complete.set()


def _has_body(headers: Headers) -> bool:
    return bool(header_values(headers, b"transfer-encoding")) or any(
        value.strip() != b"0" for value in header_values(headers, b"content-length")
    )
