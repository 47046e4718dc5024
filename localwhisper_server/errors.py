"""Every error that a request can end in, each with the status and the words that OpenAI would use.

    ServerError
    ├── InvalidRequest           400
    │   ├── UnreadableAudio      400
    │   └── NoDiarization        400
    ├── MissingKey, WrongKey     401
    ├── Forbidden                403
    ├── UnknownModel, NotFound   404
    ├── MethodNotAllowed         405
    ├── TooSlow                  408
    ├── TooLarge                 413
    ├── TooManyRequests          429
    ├── HeadTooLarge             431
    ├── EngineFailed             500
    ├── UpstreamFailed           502
    │   └── UpstreamTimeout      504
    └── Busy                     503
        └── Stopping             503

The envelope is `{"error": {"message", "type", "param", "code"}}`, all four keys always present.
"""

import math
from typing import Any, ClassVar

SERVER_ERROR = "server_error"


class ServerError(Exception):
    """An error that knows its answer.

    `status` is the HTTP status; the envelope has `message`, `type`, `param` and `code`, and the body has `beside` as
    well. `headers` are those of this answer alone.
    """

    status: ClassVar[int]
    type: ClassVar[str] = "invalid_request_error"
    beside: ClassVar[dict[str, Any]] = {}
    message: str
    param: str | None = None
    code: str | None = None

    def __init__(self, message: str | None = None, *, param: str | None = None, code: str | None = None) -> None:
        self.message = message or self.message
        self.param = param or self.param
        self.code = code or self.code
        self.headers: dict[str, str] = {}
        super().__init__(self.message)

    def body(self) -> dict[str, Any]:
        """Return the JSON body in OpenAI's envelope."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error} | self.beside


class InvalidRequest(ServerError):
    """A field, named by `param`, that is missing or malformed, or asks for what this server cannot do."""

    status = 400


class NoDiarization(InvalidRequest):
    """Speakers are asked for, but a package or a file that tells them apart is missing. The message says what to do."""

    param = "response_format"
    code = "unsupported_value"


class UnreadableAudio(InvalidRequest):
    """An upload that no decoder can read."""

    message = "Audio file might be corrupted or unsupported"
    param = "file"
    code = "invalid_value"


class MissingKey(ServerError):
    """No `Authorization` header where a key is needed."""

    status = 401
    message = (
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
        "(i.e. Authorization: Bearer YOUR_KEY). This server's key is the one it was started with (--api-key)."
    )


class WrongKey(ServerError):
    """A key that is not this server's. OpenAI repeats the status in the body of this one."""

    status = 401
    code = "invalid_api_key"
    beside: ClassVar = {"status": 401}

    def __init__(self, key: str) -> None:
        # Enough to recognise a long key by, too little to use; nothing of a short one.
        masked = f"{key[:3]}***{key[-4:]}" if len(key) > 12 else "***"  # noqa: PLR2004 - a shorter key would be half shown
        super().__init__(
            f"Incorrect API key provided: {masked}. This server's key is the one it was started with (--api-key)."
        )


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
    """A model that is neither served nor an alias; the message lists those that are served."""

    status = 404
    param = "model"
    code = "model_not_found"

    def __init__(self, name: str, served: tuple[str, ...]) -> None:
        super().__init__(f"The model '{name[:128]}' does not exist on this server. It serves: {', '.join(served)}.")


class NotFound(ServerError):
    """A path without a route."""

    status = 404

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"Invalid URL ({method} {path})")


class MethodNotAllowed(ServerError):
    """A method that the route does not take."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"Not allowed to {method} on {path}. Allowed: {allowed}.")
        self.headers = {"Allow": allowed}  # required by RFC 9110 §15.5.6


class TooSlow(ServerError):
    """A head or a body that arrives too slowly; the message gives the limit."""

    status = 408
    code = "request_timeout"


class TooLarge(ServerError):
    """A body over the limit, in bytes. OpenAI types this one `server_error` and adds an empty usage."""

    status = 413
    type = SERVER_ERROR
    beside: ClassVar = {"usage": {"type": "duration", "seconds": 0}}

    def __init__(self, limit: int, read: int) -> None:
        super().__init__(f"413: Maximum content size limit ({limit}) exceeded ({read} bytes read)")


class _RetryLater(ServerError):
    """An error that passes by itself, after `retry_after` seconds, rounded up, at least one."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = max(1, math.ceil(retry_after))
        self.headers = {"Retry-After": str(self.retry_after)}


class TooManyRequests(_RetryLater):
    """One address has as many requests open as the limit allows."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"

    def __init__(self, limit: int, *, retry_after: float) -> None:
        super().__init__(
            f"Rate limit reached: one address may have {limit} requests open at a time (--max-per-address).",
            retry_after=retry_after,
        )


class HeadTooLarge(ServerError):
    """More header fields, or more bytes of them, than any client sends."""

    status = 431


class EngineFailed(ServerError):
    """The model failed on this request. The log has the cause under the request's id, the answer never has it."""

    status = 500
    type = SERVER_ERROR
    message = "The server had an error while processing your request."


class UpstreamFailed(ServerError):
    """The upstream did not answer, or ended its answer early. The log has the cause."""

    status = 502
    type = SERVER_ERROR
    code = "upstream_failed"


class UpstreamTimeout(UpstreamFailed):
    """The upstream took too long."""

    status = 504


class Busy(_RetryLater):
    """The queue is full, or the model is not ready."""

    status = 503
    type = "service_unavailable_error"
    code = "server_is_overloaded"


class Stopping(Busy):
    """The server is about to stop."""

    def __init__(self) -> None:
        # systemd and Docker start a stopped server again within seconds.
        super().__init__("The server is being stopped or restarted. Try again shortly.", retry_after=10.0)
