"""How a server on the LAN looks from outside: its `/health`, its `/ready`, and one question that needs its key."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import openai

from localwhisper_client._http import http
from localwhisper_client.lan.servers import without_credentials
from localwhisper_client.lan.transport import http_client, within
from localwhisper_client.settings import health_url


class State(StrEnum):
    """What a server can do for a call."""

    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"
    NOT_READY = "not ready"
    """The model is loaded, but calls had better go elsewhere: the advice says why."""
    WRONG_KEY = "wrong key"
    STRANGE = "strange"
    """Somebody answers, but not as a speech-to-text server."""
    DOWN = "down"


ANSWERS = frozenset({State.READY, State.LOADING, State.WRONG_KEY})
"""The states in which a client's breaker stays closed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at a server. What it did not say is empty or `None`."""

    url: str
    state: State
    latency: float | None = None
    """Seconds until `/health` had answered, the connection included."""
    model: str = ""
    device: str = ""
    version: str = ""
    requests: int | None = None
    queue_seconds: float | None = None
    advice: str = ""


def look(url: str, key: str | None, timeout: float) -> Seen:
    """Look at the server with this base URL; `timeout` in seconds bounds each of three questions. Never raises."""
    name = without_credentials(url)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    started = time.monotonic()
    try:
        with http_client(openai.OpenAI, url) as client:
            with within(timeout):
                health = client.get(health_url(url), timeout=timeout)
            latency = time.monotonic() - started
            with within(timeout):
                models = client.get(f"{url}/models", headers=headers, timeout=timeout)
            with within(timeout):
                ready = client.get(health_url(url, "/ready"), timeout=timeout)
    except (http.HTTPError, http.InvalidURL, OSError) as error:
        return Seen(name, State.DOWN, advice=f"{type(error).__name__}. Is localwhisper-server running there?")
    said = _json(health)
    state = _state(health.status_code, said, models)
    advice = _ADVICE.get(state, "")
    if state is State.READY and ready.status_code == 503:  # noqa: PLR2004 - Service Unavailable
        state, advice = State.NOT_READY, str(_json(ready).get("reason") or "")
    return Seen(
        name,
        state,
        latency,
        str(said.get("model", "")),
        str(said.get("device", "")),
        str(said.get("version", "")),
        said.get("requests"),
        said.get("queue_seconds"),
        advice,
    )


_ADVICE = {
    State.WRONG_KEY: "Set LOCALWHISPER_API_KEY to the key that the server was started with.",
    State.FAILED: "The model could not be loaded; the server's log says why.",
    State.STRANGE: "Whatever answers there is no speech-to-text server. Check LOCALWHISPER_BASE_URL.",
}


def _state(status: int, said: dict[str, Any], models: Any) -> State:
    if models.status_code in (401, 403):
        return State.WRONG_KEY
    if said.get("status") in ("loading", "failed"):
        return State(said["status"])
    # Other servers of this API have no /health, and say by their list of models that they are there.
    well = said.get("ready") is True or (status in (200, 404) and isinstance(_json(models).get("data"), list))
    return State.READY if well else State.STRANGE


def _json(response: Any) -> dict[str, Any]:
    try:
        value = response.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
