"""Who may come in and with how much: the key and the size of the body, before anything is parsed.

Pure ASGI, so that it sees bytes as they arrive and costs a request nothing it does not need.
"""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from localwhisper_server.errors import INVALID_REQUEST, ServerError, TooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# What a monitor or a client's breaker asks has no secrets in it.
OPEN_PATHS = frozenset({"/health", "/v1/health", "/ready", "/v1/ready"})


class MissingKey(ServerError):
    """No `Authorization` header where a key is needed."""

    status = 401
    type = INVALID_REQUEST

    def __init__(self) -> None:
        super().__init__(
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY). This server's key is the one it was started with (--api-key)."
        )


class WrongKey(ServerError):
    """A key that is not this server's. OpenAI answers this one with the status in the body, too."""

    status = 401
    type = INVALID_REQUEST

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Incorrect API key provided: {_masked(key)}. "
            "This server's key is the one it was started with (--api-key).",
            code="invalid_api_key",
        )

    def body(self) -> dict[str, Any]:
        """Return the envelope with OpenAI's top-level `status`."""
        return super().body() | {"status": self.status}


def check_key(authorization: str | None, expected: str) -> None:
    """Compare a Bearer header with the server's key, in constant time.

    Raises:
        MissingKey: there is no key.
        WrongKey: there is another one.

    """
    scheme, _, key = (authorization or "").strip().partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise MissingKey
    if not hmac.compare_digest(key.encode(), expected.encode()):
        raise WrongKey(key)


class Guard:
    """An ASGI wrapper that checks the key and counts the body; what it raises, the app behind it answers."""

    def __init__(self, app: App, *, api_key: str | None, max_upload: int) -> None:
        self._app = app
        self._api_key = api_key
        self._max_upload = max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._api_key is not None and scope["path"] not in OPEN_PATHS:
            check_key(headers.get("authorization"), self._api_key)
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_upload:
            raise TooLarge(self._max_upload, int(announced))
        await self._app(scope, _counted(receive, self._max_upload), send)


def _counted(receive: Receive, limit: int) -> Receive:
    """Pass messages on until the body grows over `limit`; chunked bodies announce no length."""
    read = 0

    async def counting() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise TooLarge(limit, read)
        return message

    return counting


def _masked(key: str) -> str:
    """Show enough of a key to recognise it, never enough to use it."""
    return f"{key[:3]}***{key[-4:]}" if len(key) > 12 else "***"  # noqa: PLR2004 - shorter ones would be shown whole
