"""The client's exceptions, and the words in which a call that failed says why and what to do.

    openai.OpenAIError
    ├── LocalWhisperError                 all of ours
    │   ├── ConfigurationError            a setting cannot be used; raised before anything is sent
    │   ├── MissingCloudKey               something of the cloud's was called, and there is no key for it
    │   ├── LocalServerUnavailable              nobody on the LAN could be reached, or the connection broke
    │   │   ├── LocalServerTimeout             …because the time was up
    │   │   ├── CloudNotAllowed            …and the cloud, which the program asked for, is forbidden by a stricter policy
    │   │   ├── BudgetExceeded               …and there is no money left for the cloud
    │   │   └── CloudUnsupported               …and the cloud cannot give what the call asks for
    │   └── InvalidLocalResponse          an answer, but not one of a speech-to-text server
    └── openai.APIError
        ├── openai.APIConnectionError     LocalServerUnavailable is one of these too
        │   └── openai.APITimeoutError    …and LocalServerTimeout one of these
        ├── openai.APIResponseValidationError    …and InvalidLocalResponse one of these
        └── openai.APIStatusError         BadRequestError, AuthenticationError, RateLimitError …: raised as the SDK
                                          has them, with the backends tried and the way out added to the message

So code written for the SDK's exceptions goes on working.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai

from localwhisper_client._http import http
from localwhisper_client.routing.policy import Policy
from localwhisper_client.routing.steps import FINAL, Verdict

if TYPE_CHECKING:
    from localwhisper_client.routing.steps import Ending


class LocalWhisperError(openai.OpenAIError):
    """Anything this library raises that the SDK does not.

    It can be pickled and copied, with its attributes; the request in them then has no headers, which hold keys.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, {name: _bare(value) for name, value in vars(self).items()})


class ConfigurationError(LocalWhisperError):
    """A setting cannot be used."""


class MissingCloudKey(LocalWhisperError):
    """Something other than speech-to-text was called without a key for it."""

    def __init__(self) -> None:
        super().__init__(
            "This call goes to OpenAI, and there is no key for it: set OPENAI_API_KEY or pass api_key=. "
            "Only speech-to-text (audio.transcriptions, audio.translations) is answered on the LAN."
        )


class LocalServerUnavailable(LocalWhisperError, openai.APIConnectionError):
    """NullObserver on the LAN could be reached, or the connection broke."""

    def __init__(self, message: str, *, request: Any) -> None:
        # Straight to the root of the SDK's tree: its own constructors in between take no message.
        openai.APIError.__init__(self, message, request, body=None)


class LocalServerTimeout(LocalServerUnavailable, openai.APITimeoutError):
    """NullObserver on the LAN answered in time."""


class CloudNotAllowed(LocalServerUnavailable):
    """The LAN server could not answer, the program asked for the cloud, and a stricter policy kept the audio at home."""


class BudgetExceeded(LocalServerUnavailable):
    """The LAN server could not answer, and the cloud's budget is spent or cannot be checked; nothing was sent there."""


class CloudUnsupported(LocalServerUnavailable):
    """The LAN server could not answer, and the cloud has nothing that could; nothing was sent there."""


class InvalidLocalResponse(LocalWhisperError, openai.APIResponseValidationError):
    """Somebody answered, but not as a speech-to-text server does: a login page, half a transcript, a redirect."""

    def __init__(self, message: str, *, response: Any) -> None:
        openai.APIResponseValidationError.__init__(self, response, None, message=message)


def _restored(kind: type[LocalWhisperError], args: tuple[Any, ...], attributes: dict[str, Any]) -> LocalWhisperError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(attributes)
    return error


def _bare(value: Any) -> Any:
    """Return a request without headers, password and body, and a response with such a request; else the value."""
    if isinstance(value, http.Request):
        return http.Request(value.method, value.url.copy_with(username="", password=""))
    if isinstance(value, http.Response):
        try:
            content = value.content
        except http.StreamError:
            content = b""  # closed before it was read
        return http.Response(value.status_code, headers=value.headers, content=content, request=_bare(value.request))
    return value


def explained(ending: Ending, request: Any, *, wants_cloud: bool = False) -> Exception:
    """Return the exception for a call that failed: the backends tried, why each failed, and what to do.

    `request` stands in where no request was sent at all. `wants_cloud`: the program did, whatever the policy says.
    """
    error = ending.outcome.error
    if wants_cloud and not ending.policy.leaves_lan and ending.outcome.verdict not in FINAL:
        home = CloudNotAllowed(
            f"{_tried(ending)} This client may ask the cloud, but a stricter policy ({ending.policy}) is set by the "
            "environment, by the client that it was copied from, or by the block around the call. Nothing left the "
            "lan.",
            request=request,
        )
        home.__cause__ = error
        return home
    words = _words(ending)
    if isinstance(error, (BudgetExceeded, CloudUnsupported)):
        error.message = f"{error.message} {words}"
        error.args = (error.message,)
        return error
    if isinstance(error, (openai.APIStatusError, InvalidLocalResponse)):
        error.message = f"{_sentence(error.message)} {words}" if isinstance(error, openai.APIStatusError) else words
        error.args = (error.message,)
        return error
    timed_out = ending.timed_out or isinstance(error, openai.APITimeoutError)
    if isinstance(error, openai.APIError):
        request = error.request
    elif error is not None:
        return error
    ours = (LocalServerTimeout if timed_out else LocalServerUnavailable)(words, request=request)
    ours.__cause__ = error
    return ours


def _sentence(message: str) -> str:
    return message if message.endswith((".", "!", "?")) else f"{message}."


def _words(ending: Ending) -> str:
    return f"{_tried(ending)} {_advice(ending)}".rstrip()


def _tried(ending: Ending) -> str:
    lines = [line for line in ending.tried if line.verdict is not Verdict.REFUSED]
    tried = "; ".join(f"{line.backend} ({line.verdict}: {line.reason})" for line in lines)
    opening = "The call's time is up. " if ending.timed_out else ""
    return f"{opening}Tried: {tried}."


def _advice(ending: Ending) -> str:
    outcome = ending.outcome
    status = outcome.error.status_code if isinstance(outcome.error, openai.APIStatusError) else None
    if outcome.verdict is Verdict.BAD_REQUEST:
        return ""
    if outcome.verdict is Verdict.MISCONFIGURED:
        if status in (401, 403):
            return "Set LOCALWHISPER_API_KEY (or local_api_key=) to the key that this server was started with."
        if getattr(outcome.error, "code", None) == "model_not_found":
            return ""  # the server has said which models it has
        return (
            "Check that LOCALWHISPER_BASE_URL (or local_base_url=) is the address of a speech-to-text server, with /v1 at its "
            "end, and that the server has the model that was asked for."
        )
    if ending.policy.leaves_lan:
        return "Start the server on the LAN (localwhisper-server), or see what the cloud says above."
    if outcome.verdict is Verdict.BUSY:
        advice = "The server is well but has too much to do: try again later, or raise timeout= to wait for it."
    else:
        advice = (
            "Start the server (localwhisper-server) on that machine, or set LOCALWHISPER_BASE_URL to where it runs."
        )
    way_out = "LOCALWHISPER_POLICY=cloud would let calls go to OpenAI meanwhile"
    if ending.policy is Policy.LOCAL_ONLY:
        way_out += ", and LOCALWHISPER_POLICY=wait would wait for the LAN server"
    return f"{advice} Nothing left the LAN; {way_out}."
