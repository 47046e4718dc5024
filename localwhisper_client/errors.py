"""The client's exceptions, and the message of a call that failed: what was tried, why it failed, and what to do.

    openai.OpenAIError
    ├── LocalWhisperError                   every exception that is not the SDK's
    │   ├── ConfigurationError              a setting cannot be used; raised before anything is sent
    │   ├── MissingCloudKey                 a call that only the cloud answers, and there is no key
    │   ├── LocalServerUnavailable          no local server could be reached, or all failed   (an APIConnectionError)
    │   │   ├── LocalServerTimeout          the call's time was up                             (an APITimeoutError)
    │   │   ├── CloudNotAllowed             a stricter policy forbade the cloud, which the program asked for
    │   │   ├── BudgetExceeded              the cloud's budget is used up, or cannot be checked
    │   │   └── CloudUnsupported            the cloud cannot give what the call asks for
    │   └── InvalidLocalResponse            not a transcript                      (an APIResponseValidationError)
    └── openai.APIError
        └── openai.APIStatusError           BadRequestError, AuthenticationError …: the SDK's own classes,
                                            with the backends tried and the remedy added to the message

The classes in parentheses are the SDK's, so code that catches those works unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai

from localwhisper_client._http import http
from localwhisper_client.routing.plan import FINAL, Verdict
from localwhisper_client.routing.policy import Policy

if TYPE_CHECKING:
    from localwhisper_client.routing.plan import Ending


class LocalWhisperError(openai.OpenAIError):
    """Every exception that this library adds to the SDK's.

    It can be pickled and copied with its attributes; its request then has no headers, since they hold keys.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, {name: _without_keys(value) for name, value in vars(self).items()})


class ConfigurationError(LocalWhisperError):
    """A setting cannot be used; the message names it and says what would do."""


class MissingCloudKey(LocalWhisperError):
    """A call that only the cloud answers, without a key for the cloud."""

    def __init__(self) -> None:
        super().__init__(
            "This call goes to OpenAI, and there is no key for it: set OPENAI_API_KEY or pass api_key=. "
            "Only speech-to-text (audio.transcriptions, audio.translations) is answered on the LAN."
        )


class LocalServerUnavailable(LocalWhisperError, openai.APIConnectionError):
    """No local server could be reached, or all failed."""

    def __init__(self, message: str, *, request: Any) -> None:
        # The SDK's constructors between this class and `APIError` take no message.
        openai.APIError.__init__(self, message, request, body=None)


class LocalServerTimeout(LocalServerUnavailable, openai.APITimeoutError):
    """The call's time was up before a local server had answered."""


class CloudNotAllowed(LocalServerUnavailable):
    """No local server answered, and a stricter policy forbade the cloud, which the program asked for."""


class BudgetExceeded(LocalServerUnavailable):
    """No local server answered, and the cloud's budget is used up or cannot be checked; nothing was sent to it."""


class CloudUnsupported(LocalServerUnavailable):
    """No local server answered, and the cloud cannot give what the call asks for; nothing was sent to it."""


class InvalidLocalResponse(LocalWhisperError, openai.APIResponseValidationError):
    """The local server's answer is not a transcript: a login page, half a transcript."""

    def __init__(self, message: str, *, response: Any) -> None:
        openai.APIResponseValidationError.__init__(self, response, None, message=message)


def _restored(kind: type[LocalWhisperError], args: tuple[Any, ...], attributes: dict[str, Any]) -> LocalWhisperError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(attributes)
    return error


def _without_keys(value: Any) -> Any:
    """Return a request without headers, password and body; a response with such a request; any other value as it is."""
    if isinstance(value, http.Request):
        return http.Request(value.method, value.url.copy_with(username="", password=""))
    if isinstance(value, http.Response):
        try:
            content = value.content
        except http.StreamError:
            content = b""  # closed before it was read
        request = _without_keys(value.request)
        return http.Response(value.status_code, headers=value.headers, content=content, request=request)
    return value


def explained(ending: Ending, request: Any, *, wants_cloud: bool = False) -> Exception:
    """Return the exception for a call that failed; the message says what was tried, why it failed, and what to do.

    `request` is used if no request was sent. `wants_cloud`: the program asked for the cloud, whatever the policy is.
    """
    error = ending.outcome.error
    if wants_cloud and not ending.policy.leaves_lan and ending.outcome.verdict not in FINAL:
        forbidden = CloudNotAllowed(
            f"{_tried(ending)} This client may ask the cloud, but a stricter policy ({ending.policy}) is set by the "
            "environment, by the client it was copied from, or by a block around the call. No audio left the LAN.",
            request=request,
        )
        forbidden.__cause__ = error
        return forbidden
    message = f"{_tried(ending)} {_remedy(ending)}".rstrip()
    if isinstance(error, (BudgetExceeded, CloudUnsupported)):
        return _reworded(error, f"{error.message} {message}")
    if isinstance(error, InvalidLocalResponse):
        return _reworded(error, message)
    if isinstance(error, openai.APIStatusError):
        return _reworded(error, f"{_sentence(error.message)} {message}")
    if isinstance(error, openai.APIError):
        request = error.request
    elif error is not None:
        return error
    timed_out = ending.timed_out or isinstance(error, openai.APITimeoutError)
    unavailable = (LocalServerTimeout if timed_out else LocalServerUnavailable)(message, request=request)
    unavailable.__cause__ = error
    return unavailable


def _reworded(error: openai.APIError, message: str) -> openai.APIError:
    error.message = message
    error.args = (message,)
    return error


def _sentence(message: str) -> str:
    return message if message.endswith((".", "!", "?")) else f"{message}."


def _tried(ending: Ending) -> str:
    lines = [line for line in ending.tried if line.verdict is not Verdict.REFUSED]
    tried = "; ".join(f"{line.backend} ({line.reason})" for line in lines)
    opening = "The call's time is up. " if ending.timed_out else ""
    return f"{opening}Tried: {tried}."


def _remedy(ending: Ending) -> str:
    outcome = ending.outcome
    if outcome.verdict is Verdict.BAD_REQUEST:
        return ""
    if outcome.verdict is Verdict.MISCONFIGURED:
        return _right_setting(outcome.error)
    if ending.policy.leaves_lan:
        return "Start the server on the LAN (localwhisper-server); the cloud's own error is above."
    if outcome.verdict is Verdict.BUSY:
        advice = "The server is full or not ready yet: try again later, or raise timeout= to wait for it."
    elif isinstance(outcome.error, openai.APIStatusError):
        advice = (
            "If this is localwhisper-server, its log says why. If not, set LOCALWHISPER_BASE_URL to where that runs."
        )
    else:
        advice = (
            "Start the server (localwhisper-server) on that machine, or set LOCALWHISPER_BASE_URL to where it runs."
        )
    alternative = "LOCALWHISPER_POLICY=cloud would let calls go to OpenAI meanwhile"
    if ending.policy is Policy.LOCAL_ONLY:
        alternative += ", and LOCALWHISPER_POLICY=wait would wait for the local server"
    return f"{advice} No audio left the LAN; {alternative}."


def _right_setting(error: Exception | None) -> str:
    if isinstance(error, openai.APIStatusError) and error.status_code in (401, 403):
        return "Set LOCALWHISPER_API_KEY (or local_api_key=) to the key that this server was started with."
    if getattr(error, "code", None) == "model_not_found":
        return ""  # the server's own message lists its models
    return (
        "Check that LOCALWHISPER_BASE_URL (or local_base_url=) is the address of a speech-to-text server, with /v1 at "
        "its end, and that the server has the model."
    )
