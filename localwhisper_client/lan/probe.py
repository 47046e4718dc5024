"""Asks a server on the LAN whether it can take a call: without the user's audio, without a key, one at a time.

A probe runs in a thread of its own, for the sync and the async client alike: it then adds nothing to the call that
caused it, outlives that call's event loop, and is there under trio as well as asyncio.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import openai

from localwhisper_client._background import OneAtATime
from localwhisper_client._http import http
from localwhisper_client.lan.transport import http_client, within
from localwhisper_client.routing.breaker import Signal
from localwhisper_client.settings import health_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from localwhisper_client.routing.steps import Announce, Backend


# Time-outs that a question may take in all: to connect, to send, and to hear the answer.
_PATIENCE = 3


class Prober:
    """Probes one backend. `ask` is given base URL and time-out; it says whether the server is ready, and why."""

    def __init__(
        self, backend: Backend, url: str, timeout: float, ask: Callable[[str, float], tuple[bool, str]] | None = None
    ) -> None:
        self._backend = backend
        self._url = url
        self._timeout = timeout
        self._ask = ask or is_ready
        self._probes = OneAtATime(self._probe)

    def ask(self, announce: Announce) -> Future[bool]:
        """Start a probe, or join the one that is under way; the breaker has heard of it when the future is done."""
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
    """Return whether the server with this base URL could take a call now, and what was seen.

    `/ready` knows. `/health` is asked where it does not: other servers of this API have no `/ready`; and one whose
    model is still being loaded is not ready, but a call that comes now is told how long to wait.
    """
    well, reason, answer = _ask(health_url(base_url, "/ready"), timeout)
    if answer is None:
        return well, reason
    if answer.status_code == 503:  # noqa: PLR2004 - Service Unavailable
        _, said, answer = _ask(health_url(base_url), timeout)
        return answer is not None and _is_loading(answer), f"{reason}, {said}"
    if _is_page(answer) or answer.status_code in (404, 405):
        return is_well(health_url(base_url), timeout)
    return well, reason


def is_well(url: str, timeout: float) -> tuple[bool, str]:
    """Return whether a speech-to-text server answers at this URL, and what was seen.

    Any answer will do that is neither an error of the server's nor a web page: other servers of this API have no
    `/health`, or want a key for it, and a 404 or a 401 is as much a sign of life.
    """
    well, reason, _ = _ask(url, timeout)
    return well, reason


def _ask(url: str, timeout: float) -> tuple[bool, str, Any]:
    what = url.rpartition("/")[2]
    try:
        with http_client(openai.OpenAI, url) as client, within(_PATIENCE * timeout):
            answer = client.get(url, timeout=timeout)
    except http.HTTPError as error:
        return False, f"{what}: {type(error).__name__}", None
    status = answer.status_code
    well = not _is_page(answer) and (200 <= status < 300 or 400 <= status < 500)  # noqa: PLR2004 - classes of statuses
    return well, f"{what}: status {status}", answer


def _is_page(answer: Any) -> bool:
    return bool(answer.headers.get("content-type", "").startswith("text/html"))


def _is_loading(answer: Any) -> bool:
    try:
        return bool(answer.json()["status"] == "loading")
    except (ValueError, KeyError, TypeError):
        return False
