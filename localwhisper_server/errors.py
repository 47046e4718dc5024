"""Every error a request can end in, each with the status and the words OpenAI would use.

    ServerError
    ├── InvalidRequest      400  the caller's field is wrong: `param` names it, `code` says how
    │   └── UnreadableAudio 400  the bytes are not audio that can be decoded
    ├── MissingKey          401  no key where one is needed
    ├── WrongKey            401  another key
    ├── Forbidden           403  from outside the LAN server, or for a web page; the message says what lets it in
    ├── UnknownModel        404  a name that is neither served nor an alias
    ├── NotFound            404  no such route
    ├── MethodNotAllowed    405  the route exists, the method does not
    ├── TooSlow             408  the head or the body comes too slowly
    ├── TooLarge            413  the body is over the limit
    ├── TooManyRequests     429  one address takes more than its share of the queue
    ├── TooManyHeaders      431  more header fields than any client sends; HeadTooLarge: more bytes of them
    ├── UpstreamFailed      502  what the server passes on to did not answer; UpstreamSilent 504: not in time
    ├── Busy                503  the queue is full or the model is not ready; `retry_after` says when to come back
    └── EngineFailed        500  the model failed; the cause is in the log under the request's id, never in the answer

The envelope is `{"error": {"message", "type", "param", "code"}}`, all four keys always present.
"""

import math
from typing import Any, ClassVar

INVALID_REQUEST = "invalid_request_error"


class ServerError(Exception):
    """An error that knows how it is answered.

    `status` is the HTTP status; `type`, `param` and `code` are the envelope's fields of those names.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to this answer, `Retry-After` for one."""
        return {}

    def body(self) -> dict[str, Any]:
        """Return the JSON body in OpenAI's envelope."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ServerError):
    """A field that is missing, malformed or cannot be honoured."""

    status = 400
    type = INVALID_REQUEST


class UnreadableAudio(InvalidRequest):
    """An upload that no decoder makes sense of."""

    def __init__(self, message: str = "Audio file might be corrupted or unsupported") -> None:
        super().__init__(message, param="file", code="invalid_value")


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
        # Enough of it to be recognised, never enough to be used; of a short one nothing.
        masked = f"{key[:3]}***{key[-4:]}" if len(key) > 12 else "***"  # noqa: PLR2004
        super().__init__(
            f"Incorrect API key provided: {masked}. This server's key is the one it was started with (--api-key).",
            code="invalid_api_key",
        )

    def body(self) -> dict[str, Any]:
        """Return the envelope with OpenAI's top-level `status`."""
        return super().body() | {"status": self.status}


class Forbidden(ServerError):
    """A caller who may not come in, whatever the key; `type` is what OpenAI calls its own refusal of a country.

    `who` was refused, an address, a name or a page; `option` of the server lets it in.
    """

    status = 403
    type = "request_forbidden"

    def __init__(self, message: str, *, code: str, who: str, option: str) -> None:
        super().__init__(message, code=code)
        self.who = who
        self.option = option


class UnknownModel(ServerError):
    """A model that this server does not serve; the message lists what it does."""

    status = 404
    type = INVALID_REQUEST

    def __init__(self, name: str, served: tuple[str, ...]) -> None:
        super().__init__(
            f"The model '{name}' does not exist on this server. It serves: {', '.join(served)}.",
            param="model",
            code="model_not_found",
        )


class NotFound(ServerError):
    """A path without a route."""

    status = 404
    type = INVALID_REQUEST

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"Invalid URL ({method} {path})")


class MethodNotAllowed(ServerError):
    """A route that does not take this method."""

    status = 405
    type = INVALID_REQUEST

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"Not allowed to {method} on {path}. Allowed: {allowed}.", code="method_not_allowed")
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110 §15.5.6 asks for `Allow`."""
        return {"Allow": self.allowed}


class TooSlow(ServerError):
    """A request that comes too slowly; the message says how slow is too slow."""

    status = 408
    type = INVALID_REQUEST

    def __init__(self, message: str) -> None:
        super().__init__(message, code="request_timeout")


class TooLarge(ServerError):
    """A body over the limit. OpenAI types this one `server_error` and adds an empty usage."""

    status = 413

    def __init__(self, limit: int, read: int) -> None:
        super().__init__(f"413: Maximum content size limit ({limit}) exceeded ({read} bytes read)")

    def body(self) -> dict[str, Any]:
        """Return the envelope with the `usage` that OpenAI's 413 carries."""
        return super().body() | {"usage": {"type": "duration", "seconds": 0}}


class Busy(ServerError):
    """The server is alive but cannot take this request now. `retry_after` is in seconds."""

    status = 503
    type = "service_unavailable_error"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, code="server_is_overloaded")
        self.retry_after = max(1, math.ceil(retry_after))

    @property
    def headers(self) -> dict[str, str]:
        """Whole seconds, as OpenAI sends them."""
        return {"Retry-After": str(self.retry_after)}


class TooManyRequests(ServerError):
    """One address has as many requests open as one may. `retry_after` is in seconds."""

    status = 429
    type = "requests"

    def __init__(self, limit: int, *, retry_after: float) -> None:
        super().__init__(
            f"Rate limit reached: one address may have {limit} requests open at a time (--max-per-address).",
            code="rate_limit_exceeded",
        )
        self.retry_after = max(1, math.ceil(retry_after))

    @property
    def headers(self) -> dict[str, str]:
        """Whole seconds, as OpenAI sends them."""
        return {"Retry-After": str(self.retry_after)}


class TooManyHeaders(ServerError):
    """More header fields than any client sends."""

    status = 431
    type = INVALID_REQUEST

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request has more than {limit} header fields.", code="too_many_headers")


class HeadTooLarge(ServerError):
    """A head of more bytes than any client sends."""

    status = 431
    type = INVALID_REQUEST

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request's head is longer than {limit} bytes.", code="headers_too_large")


class UpstreamFailed(ServerError):
    """The server behind this one did not answer, or broke off. The cause is in the log."""

    status = 502

    def __init__(self, message: str) -> None:
        super().__init__(message, code="upstream_failed")


class UpstreamSilent(UpstreamFailed):
    """The server behind this one took too long."""

    status = 504


class EngineFailed(ServerError):
    """The model failed on this request."""

    def __init__(self, message: str = "The server had an error while processing your request.") -> None:
        super().__init__(message)
