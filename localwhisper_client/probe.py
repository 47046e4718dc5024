"""Asks a server in the house after its health: without the user's audio, without a key, one at a time.

A probe runs in a thread of its own, for the sync and the async client alike: it then adds nothing to the call that
caused it, outlives that call's event loop, and is there under trio as well as asyncio.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import openai

from localwhisper_client._http import http
from localwhisper_client.circuit import Signal

if TYPE_CHECKING:
    from localwhisper_client.steps import Announce, Backend


class Prober:
    """Probes one backend."""

    def __init__(self, backend: Backend, url: str, timeout: float) -> None:
        self._backend = backend
        self._url = url
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running: Future[bool] | None = None

    def ask(self, announce: Announce) -> Future[bool]:
        """Start a probe, or join the one that is under way; the breaker has heard of it when the future is done."""
        with self._lock:
            if self._running is None:
                self._running = Future()
                thread = threading.Thread(
                    target=self._probe, args=(self._running, announce), name="localwhisper-probe", daemon=True
                )
                thread.start()
            return self._running

    def _probe(self, future: Future[bool], announce: Announce) -> None:
        well = False
        reason = "the probe failed"
        try:
            well, reason = is_well(self._url, self._timeout)
        finally:
            signal = Signal.PROBE_ANSWERED if well else Signal.PROBE_FAILED
            self._backend.learn(signal, time.monotonic(), reason, announce)
            with self._lock:
                self._running = None
            future.set_result(well)


def is_well(url: str, timeout: float) -> tuple[bool, str]:
    """Return whether a speech-to-text server lives there and could take a call, and what was seen.

    Any answer will do that is neither an error of the server's nor a web page: other servers of this API have no
    `/health`, or want a key for it, and a 404 or a 401 is as much a sign of life.
    """
    # Certificates are read only where there are some: reading them takes longer than a probe.
    client = openai.DefaultHttpxClient(
        timeout=timeout, follow_redirects=False, trust_env=False, verify=url.startswith("https:")
    )
    try:
        with client, client.stream("GET", url) as response:
            status = response.status_code
            page = response.headers.get("content-type", "").startswith("text/html")
    except http.HTTPError as error:
        return False, f"health: {type(error).__name__}"
    well = not page and (200 <= status < 300 or 400 <= status < 500)  # noqa: PLR2004 - classes of statuses
    return well, f"health: status {status}"
