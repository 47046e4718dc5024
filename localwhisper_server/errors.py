"""Every error that a request can end in, each with the status and the words that OpenAI would use.

    ServerError
    ├── InvalidRequest      400  a field is wrong: `param` names it, `code` says how
    │   └── UnreadableAudio 400  the bytes are not audio that can be decoded
    ├── MissingKey          401  no key where one is needed
    ├── WrongKey            401  another key
    ├── Forbidden           403  an address, host name or web page that may not call; the message says what allows it
    ├── UnknownModel        404  a name that is neither served nor an alias
    ├── NotFound            404  no such route
    ├── MethodNotAllowed    405  the route exists, the method does not
    ├── TooSlow             408  the head or the body arrives too slowly
    ├── TooLarge            413  the body is over the limit
    ├── TooManyRequests     429  one address has too many requests open
    ├── HeadTooLarge        431  more header fields, or more bytes of them, than any client sends
    ├── UpstreamFailed      502  the upstream did not answer
    │   └── UpstreamTimeout 504  the upstream did not answer in time
    ├── Busy                503  the queue is full or the model is not ready; `retry_after` says when to try again
    │   └── Stopping        503  the server is about to stop
    └── EngineFailed        500  the model failed; the log has the cause under the request's id, the answer never has it

The envelope is `{"error": {"message", "type", "param", "code"}}`, all four keys always present.
"""

import math
from typing import Any, ClassVar

INVALID_REQUEST = "invalid_request_error"


class ServerError(Exception):
    """An error that knows its answer.

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
        """Headers of this answer alone, such as `Retry-After`."""
        return {}

    def body(self) -> dict[str, Any]:
        """Return the JSON body in OpenAI's envelope."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ServerError):
    """A field that is missing or malformed, or asks for what this server cannot do."""

    status = 400
    type = INVALID_REQUEST


class UnreadableAudio(InvalidRequest):
    """An upload that no decoder can read."""

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
    """A key that is not this server's. OpenAI repeats the status in the body of this one."""

    status = 401
    type = INVALID_REQUEST

    def __init__(self, key: str) -> None:
        # Enough to recognise a long key by, too little to use; nothing of a short one.
        masked = f"{key[:3]}***{key[-4:]}" if len(key) > 12 else "***"  # noqa: PLR2004
        super().__init__(
            f"Incorrect API key provided: {masked}. This server's key is the one it was started with (--api-key).",
            code="invalid_api_key",
        )

    def body(self) -> dict[str, Any]:
        """Return the envelope with OpenAI's top-level `status`."""
        return super().body() | {"status": self.status}


class Forbidden(ServerError):
    """A request that is refused whatever its key; `type` is what OpenAI calls the refusal of a country.

    `who` was refused: an address, a host name or a page's origin. The server's `option` would allow it.
    """

    status = 403
    type = "request_forbidden"

    def __init__(self, message: str, *, code: str, who: str, option: str) -> None:
        super().__init__(message, code=code)
        self.who = who
        self.option = option


class UnknownModel(ServerError):
    """A model that this server does not serve; the message lists those it does."""

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
    """A method that the route does not take."""

    status = 405
    type = INVALID_REQUEST

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"Not allowed to {method} on {path}. Allowed: {allowed}.", code="method_not_allowed")
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110 §15.5.6 requires `Allow`."""
        return {"Allow": self.allowed}


class TooSlow(ServerError):
    """A request that arrives too slowly; the message gives the limit."""

    status = 408
    type = INVALID_REQUEST

    def __init__(self, message: str) -> None:
        super().__init__(message, code="request_timeout")


class TooLarge(ServerError):
    """A body over the limit, in bytes. OpenAI types this one `server_error` and adds an empty usage."""

    status = 413

    def __init__(self, limit: int, read: int) -> None:
        super().__init__(f"413: Maximum content size limit ({limit}) exceeded ({read} bytes read)")

    def body(self) -> dict[str, Any]:
        """Return the envelope with the `usage` that OpenAI's 413 carries."""
        return super().body() | {"usage": {"type": "duration", "seconds": 0}}


class _RetryLater(ServerError):
    """An error that passes by itself. `retry_after` is in seconds, at least one."""

    def __init__(self, message: str, *, code: str, retry_after: float) -> None:
        super().__init__(message, code=code)
        self.retry_after = max(1, math.ceil(retry_after))

    @property
    def headers(self) -> dict[str, str]:
        """Whole seconds, as OpenAI sends them."""
        return {"Retry-After": str(self.retry_after)}


class Busy(_RetryLater):
    """The server works but cannot take this request now."""

    status = 503
    type = "service_unavailable_error"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, code="server_is_overloaded", retry_after=retry_after)


class Stopping(Busy):
    """The server is about to stop."""

    def __init__(self) -> None:
        # systemd and Docker start a stopped server again within seconds.
        super().__init__("The server is being stopped or restarted. Try again shortly.", retry_after=10.0)


class TooManyRequests(_RetryLater):
    """One address has as many requests open as the limit allows."""

    status = 429
    type = "requests"

    def __init__(self, limit: int, *, retry_after: float) -> None:
        super().__init__(
            f"Rate limit reached: one address may have {limit} requests open at a time (--max-per-address).",
            code="rate_limit_exceeded",
            retry_after=retry_after,
        )


class HeadTooLarge(ServerError):
    """More header fields, or more bytes of them, than any client sends."""

    status = 431
    type = INVALID_REQUEST


class UpstreamFailed(ServerError):
    """The upstream did not answer, or ended its answer early. The log has the cause."""

    status = 502

    def __init__(self, message: str) -> None:
        super().__init__(message, code="upstream_failed")


class UpstreamTimeout(UpstreamFailed):
    """The upstream took too long."""

    status = 504


class EngineFailed(ServerError):
    """The model failed on this request."""

    def __init__(self, message: str = "The server had an error while processing your request.") -> None:
        super().__init__(message)
