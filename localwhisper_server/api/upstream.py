"""What else OpenAI offers, passed on to it: chat, embeddings, speech synthesis. Never a recording to be transcribed.

A bot of which only OPENAI_BASE_URL was changed asks this server for everything. What is not speech-to-text goes to the
upstream with the caller's own key, streaming both ways, as if it had gone there itself.
"""

import json
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import anyio

from localwhisper_client._http import http
from localwhisper_server.api.asgi import Message, Receive, Scope, Send, header_values
from localwhisper_server.api.keys import KEY_HEADER, holds_one_of
from localwhisper_server.errors import Busy, NotFound, ServerError, UpstreamFailed, UpstreamSilent

logger = logging.getLogger(__name__)

PREFIX = b"/v1/"
CONNECT_SECONDS = 5.0
# As patient as the SDKs are: a model may think for minutes before its first word.
SILENT_SECONDS = 600.0
# For the list of models, which a program waits for before it shows anything; and how large one may be.
LIST_SECONDS = 5.0
MOST_LISTED = 4 * 1024 * 1024
OK, UNAUTHORIZED, MOST_STATUS = 200, 401, 600

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
# rest would tell the addresses and names of the LAN.
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
FOR_A_BODY = frozenset({b"accept-encoding", b"content-length", b"content-type", b"content-encoding", b"range"})
# The web server here says the time and its name; who may read an answer is this server's to say.
KEPT_FROM_CALLER = HOP_BY_HOP | {b"set-cookie", b"date", b"server", b"alt-svc", b"strict-transport-security"}
CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key"})
# Whatever lies under /audio is presumed to carry a voice, apart from what makes one.
SPEECH_SYNTHESIS = (b"audio", b"speech")
SOUND = (b"audio/", b"video/", b"application/ogg", b"application/x-ogg", b"application/mp4")
OUR_OWN = frozenset({b"transcriptions", b"translations"})

Headers = list[tuple[bytes, bytes]]


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


def to_upstream(headers: Iterable[tuple[bytes, bytes]], keys: Sequence[str], own_key: str | None = None) -> Headers:
    """Return the headers to pass on; a key of this server's own stays here, in whatever header and form it came.

    `own_key` is sent for a caller who shows the upstream no key.
    """
    kept = [(name, value) for name, value in _without(headers, KEPT_FROM_UPSTREAM) if not holds_one_of(keys, value)]
    if own_key is not None and not CREDENTIALS.intersection(name for name, _ in kept):
        kept.append((b"authorization", b"Bearer " + own_key.encode()))
    return kept


def to_caller(headers: Headers) -> Headers:
    """Return the headers to answer with."""
    return _without(headers, KEPT_FROM_CALLER)


def _without(headers: Iterable[tuple[bytes, bytes]], unwanted: frozenset[bytes]) -> Headers:
    headers = [(name.lower(), value) for name, value in headers]
    named = {token.strip().lower() for value in header_values(headers, b"connection") for token in value.split(b",")}
    return [(name, value) for name, value in headers if name not in unwanted | named]


class Upstream:
    """An ASGI application that passes requests on to `base_url`, which stands for /v1. Close it at the end.

    `keys` are this server's own and stay here; `own_key` goes to the upstream in their place.

    `keys` are this server's own, which are never passed on.
    """

    def __init__(
        self, base_url: str, *, keys: Sequence[str] = (), own_key: str | None = None, transport: Any = None
    ) -> None:
        self._base = http.URL(base_url.rstrip("/") + "/")
        self._keys = keys
        self._own_key = own_key
        timeout = http.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS)
        # Redirects are the caller's to follow. Proxies of the environment apply: they are this machine's way out.
        self._client = http.AsyncClient(timeout=timeout, follow_redirects=False, transport=transport)

    async def aclose(self) -> None:
        """Close what connections are left."""
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and its answer back; ends early, upstream too, when the caller hangs up.

        Raises:
            NotFound: it may not leave the LAN.
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

    async def models(self, headers: Iterable[tuple[bytes, bytes]]) -> list[dict[str, Any]]:
        """Return the upstream's models for a caller with these headers; none where the list cannot be had.

        The list of this server's own has to be shown in any case.
        """
        try:
            status, body = await self.get("models", headers)
            listed = json.loads(body)["data"] if status == OK else []
            return [model for model in listed if isinstance(model["id"], str)]
        except ServerError:
            return []  # the log has it
        except (ValueError, TypeError, KeyError, RecursionError):
            logger.warning("%s gave a list of models that is none", self._base.host)
            return []

    async def get(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, bytes]:
        """Return status and body of a small answer on a path below /v1.

        Raises:
            NotFound: the path may not be asked for.
            Busy, UpstreamFailed, UpstreamSilent: there is no answer.

        """
        target = quote(path).encode()
        if not may_leave(PREFIX + target):
            raise NotFound("GET", f"/v1/{path}")
        # Plain, so that nothing has to be unpacked; the rest of the headers may tell whose models they are.
        asking = [
            *_without(to_upstream(headers, self._keys, self._own_key), FOR_A_BODY),
            (b"accept-encoding", b"identity"),
        ]
        request = http.Request("GET", self._base.copy_with(raw_path=self._base.raw_path + target), headers=asking)
        try:
            with anyio.fail_after(LIST_SECONDS):
                response = await self._client.send(request, stream=True)
                try:
                    body = b""
                    async for part in response.aiter_raw():
                        body += part
                        if len(body) > MOST_LISTED:
                            raise UpstreamFailed(f"The answer of {self._base.host} is too long.")
                finally:
                    with anyio.CancelScope(shield=True):
                        await response.aclose()
        except TimeoutError as failure:
            raise self._named(http.ReadTimeout("")) from failure
        except http.HTTPError as failure:
            raise self._named(failure) from failure
        self._require_status(response)
        if response.status_code == UNAUTHORIZED and self._own_key is None:
            logger.info("%s wants a key for its list of models: --upstream-api-key gives it one", self._base.host)
        return response.status_code, body

    def _require_status(self, response: Any) -> None:
        if not OK <= response.status_code < MOST_STATUS:
            logger.warning("%s answered with status %d", self._base.host, response.status_code)
            raise UpstreamFailed(
                f"This server passes such requests on to {self._base.host}, which answered with the status "
                f"{response.status_code} that HTTP does not have."
            )

    def _request(self, scope: Scope, body: "_Body | None") -> Any:
        path = self._base.raw_path + scope["raw_path"][len(PREFIX) :]
        pairs = [pair for pair in scope["query_string"].split(b"&") if pair and not holds_one_of(self._keys, pair)]
        query = b"?" + b"&".join(pairs) if pairs else b""
        return http.Request(
            scope["method"],
            self._base.copy_with(raw_path=path + query),
            headers=to_upstream(scope["headers"], self._keys, self._own_key),
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
            self._require_status(response)
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
