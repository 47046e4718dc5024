"""Asks a local server how it is, without the user's audio: a probe for the breaker, and the status for a person.

A probe has a thread of its own, for the sync and the async client alike: it takes no time from the call that caused it,
and it does not end with that call's event loop.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import openai

from localwhisper_client._background import OneAtATime
from localwhisper_client._http import http
from localwhisper_client.lan.answers import failed
from localwhisper_client.lan.transport import http_client, within
from localwhisper_client.routing.backend import Signal
from localwhisper_client.routing.plan import Outcome, Verdict
from localwhisper_client.settings import health_url, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from localwhisper_client.routing.backend import Announce, Backend

# The timeout is for one read or write. A whole request may take this many: to connect, to send, to receive the answer.
_TIMEOUTS = 3
_UNAVAILABLE = 503


class Prober:
    """Probes one backend. `ask` takes a base URL and a timeout; it returns whether the server is ready, and why."""

    def __init__(
        self, backend: Backend, url: str, timeout: float, ask: Callable[[str, float], tuple[bool, str]] | None = None
    ) -> None:
        self._backend = backend
        self._url = url
        self._timeout = timeout
        self._ask = ask or is_ready
        self._probes = OneAtATime(self._probe)

    def ask(self, announce: Announce) -> Future[bool]:
        """Start a probe, or join the one in progress. When the future is done, the breaker knows the result."""
        return self._probes.start(announce)

    def _probe(self, announce: Announce) -> bool:
        ready = False
        reason = "the probe failed"
        try:
            ready, reason = self._ask(self._url, self._timeout)
        finally:
            signal = Signal.PROBE_ANSWERED if ready else Signal.PROBE_FAILED
            self._backend.learn(signal, time.monotonic(), reason, announce)
        return ready


def is_ready(base_url: str, timeout: float) -> tuple[bool, str]:
    """Return whether the server with this base URL could take a call now, and what it answered.

    `/ready` tells. `/health` is asked if there is no `/ready`, as on other servers of this API; and if `/ready` says
    no, because a server that is still loading its model counts as ready: it tells a call how long to wait.
    """
    healthy, reason, answer = _ask(health_url(base_url, "/ready"), timeout)
    if answer is None:
        return healthy, reason
    if answer.status_code == _UNAVAILABLE:
        _, second_reason, answer = _ask(health_url(base_url), timeout)
        loading = answer is not None and _json(answer).get("status") == "loading"
        return loading, f"{reason}, {second_reason}"
    if _is_page(answer) or answer.status_code in (404, 405):
        return is_healthy(health_url(base_url), timeout)
    return healthy, reason


def readiness(base_url: str, timeout: float) -> Outcome:
    """Return what `/ready` tells of the server with this base URL, as the outcome of an attempt without audio.

    A server without `/ready` counts as ready: it may be another server of this API. One that is loading its model is
    busy.
    """
    url = health_url(base_url, "/ready")
    try:
        with http_client(openai.OpenAI, url) as client, within(_TIMEOUTS * timeout):
            answer = client.get(url, timeout=timeout)
    except http.HTTPError as error:
        outcome = failed(error, 0.0)
        if outcome is None:
            raise
        return outcome
    reason = f"ready: status {answer.status_code}"
    if answer.status_code == _UNAVAILABLE:
        return Outcome(Verdict.BUSY, f"not ready: {_json(answer).get('reason') or reason}")
    if _is_page(answer) and answer.is_success:
        return Outcome(Verdict.FAILURE, f"{reason}, a web page")
    wrong = answer.is_redirect or answer.is_server_error
    return Outcome(Verdict.FAILURE if wrong else Verdict.ANSWERED, reason)


def is_healthy(url: str, timeout: float) -> tuple[bool, str]:
    """Return whether a speech-to-text server answers at this URL, and what it answered.

    Any answer will do but a server error and a web page. Other servers of this API may have no `/health`, or want a key
    for it: a 404 or a 401 shows as well that they run.
    """
    healthy, reason, _ = _ask(url, timeout)
    return healthy, reason


def _ask(url: str, timeout: float) -> tuple[bool, str, Any]:
    path = url.rpartition("/")[2]
    try:
        with http_client(openai.OpenAI, url) as client, within(_TIMEOUTS * timeout):
            answer = client.get(url, timeout=timeout)
    except http.HTTPError as error:
        return False, f"{path}: {type(error).__name__}", None
    status = answer.status_code
    healthy = not _is_page(answer) and (200 <= status < 300 or 400 <= status < 500)  # noqa: PLR2004 - status classes
    return healthy, f"{path}: status {status}", answer


def _is_page(answer: Any) -> bool:
    return bool(answer.headers.get("content-type", "").startswith("text/html"))


class ServerState(StrEnum):
    """What a server can do for a call."""

    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"
    NOT_READY = "not ready"
    """The model is loaded, but the server takes no calls now; the advice says why."""
    WRONG_KEY = "wrong key"
    WRONG_SERVER = "wrong server"
    """It answers, but not as a speech-to-text server."""
    DOWN = "down"


CLOSES_BREAKER = frozenset({ServerState.READY, ServerState.LOADING, ServerState.WRONG_KEY})
"""The states in which a client's breaker stays closed."""

_ADVICE = {
    ServerState.WRONG_KEY: "Set LOCALWHISPER_API_KEY to the key that the server was started with.",
    ServerState.FAILED: "The model could not be loaded; the server's log says why.",
    ServerState.WRONG_SERVER: "This is not a speech-to-text server. Check LOCALWHISPER_BASE_URL.",
}


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The status of one server. What it did not tell is empty or `None`."""

    url: str
    state: ServerState
    latency: float | None = None
    """Seconds until `/health` was answered, the connection included."""
    model: str = ""
    device: str = ""
    version: str = ""
    requests: int | None = None
    queue_seconds: float | None = None
    advice: str = ""


def status(url: str, key: str | None, timeout: float) -> ServerStatus:
    """Return the status of the server with this base URL. Never raises.

    Asks for `/health`, for `/models` with the key, and for `/ready`; `timeout` bounds each, in seconds.
    """
    name = without_credentials(url)
    models_url = f"{url}/models"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    started = time.monotonic()

    def get(address: str) -> Any:
        with within(timeout):
            return client.get(address, headers=headers if address == models_url else {}, timeout=timeout)

    try:
        with http_client(openai.OpenAI, url) as client:
            health = get(health_url(url))
            latency = time.monotonic() - started
            models, ready = get(models_url), get(health_url(url, "/ready"))
    except (http.HTTPError, http.InvalidURL, OSError) as error:
        return ServerStatus(
            name, ServerState.DOWN, advice=f"{type(error).__name__}. Is localwhisper-server running there?"
        )
    told = _json(health)
    state = _state(health.status_code, told, models)
    advice = _ADVICE.get(state, "")
    if state is ServerState.READY and ready.status_code == _UNAVAILABLE:
        state, advice = ServerState.NOT_READY, str(_json(ready).get("reason") or "")
    model, device, version = (str(told.get(word, "")) for word in ("model", "device", "version"))
    requests, queue_seconds = told.get("requests"), told.get("queue_seconds")
    return ServerStatus(name, state, latency, model, device, version, requests, queue_seconds, advice)


def _state(health_status: int, told: dict[str, Any], models: Any) -> ServerState:
    if models.status_code in (401, 403):
        return ServerState.WRONG_KEY
    if told.get("status") in ("loading", "failed"):
        return ServerState(told["status"])
    # Other servers of this API have no /health, but they have a list of models.
    lists_models = health_status in (200, 404) and isinstance(_json(models).get("data"), list)
    return ServerState.READY if told.get("ready") is True or lists_models else ServerState.WRONG_SERVER


def _json(response: Any) -> dict[str, Any]:
    try:
        value = response.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
