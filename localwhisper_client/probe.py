"""Asks a server in the house after its health: without the user's audio, without a key, one at a time.

A probe runs in a thread of its own, for the sync and the async client alike: it then adds nothing to the call that
caused it, outlives that call's event loop, and is there under trio as well as asyncio.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import openai

from localwhisper_client._http import http
from localwhisper_client.circuit import Signal

if TYPE_CHECKING:
    from localwhisper_client.steps import Announce, Backend


# Time-outs that a probe may take in all: to connect, to send, and to hear the beginning of an answer.
_PATIENCE = 3


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
    line = _Line()
    # The timeout above is for each piece of an answer, this one for all of it: a probe that hung would be the last.
    hang_up = threading.Timer(_PATIENCE * timeout, line.cut)
    hang_up.daemon = True
    hang_up.start()
    try:
        with client, client.stream("GET", url, extensions={"trace": line.trace}) as response:
            status = response.status_code
            page = response.headers.get("content-type", "").startswith("text/html")
    except http.HTTPError as error:
        return False, f"health: {type(error).__name__}"
    finally:
        hang_up.cancel()
    well = not page and (200 <= status < 300 or 400 <= status < 500)  # noqa: PLR2004 - classes of statuses
    return well, f"health: status {status}"


class _Line:
    """The connection of a request, to be cut from another thread."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._is_cut = False

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Listen to what the HTTP library tells of a request (its `trace` extension)."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")
            if self._is_cut:  # before there was one
                self.cut()

    def cut(self) -> None:
        """End whatever waits for the other side."""
        self._is_cut = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed in this very moment
                self._socket.shutdown(socket.SHUT_RDWR)
