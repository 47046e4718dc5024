"""A server in a process of its own: started on a free loopback port, waited for, and stopped.

`localwhisper demo`, `localwhisper-server doctor`, the tests and the benchmarks use it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from localwhisper_client.shared import install_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

START_SECONDS = 300.0  # a model that is not on disk is downloaded first
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05

_LISTENING = re.compile(r"listening on (http://\S+)")


class ServerNotStarted(Exception):
    """The server is not installed, or did not get ready; the message has the last lines of its log."""


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server. `url` is its address without /v1."""

    url: str
    process: subprocess.Popen[str]

    @property
    def base_url(self) -> str:
        """The value for OPENAI_BASE_URL."""
        return f"{self.url}/v1"

    def health(self) -> dict[str, Any]:
        """Return the body of /health.

        Raises:
            OSError: the server does not answer.

        """
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to this machine itself
        with opener.open(f"{self.url}/health", timeout=5) as answer:
            return cast("dict[str, Any]", json.load(answer))

    def ready(self) -> bool:
        """Return whether the server answers and its model is loaded."""
        try:
            return bool(self.health()["ready"])
        except OSError:
            return False

    def stop(self, within: float = STOP_SECONDS) -> None:
        """Stop the server; kill it if it has not ended `within` seconds."""
        self.process.terminate()
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def serving(
    *options: str,
    environ: Mapping[str, str] | None = None,
    ready_within: float = START_SECONDS,
    stop_within: float = STOP_SECONDS,
    on_wait: Callable[[float], object] = lambda _seconds: None,
) -> Iterator[ServerProcess]:
    """Run a server process on a free loopback port until the block ends.

    `options` are those of its command line; `environ` is its environment, by default this process's. `on_wait` is
    called many times before the server is ready, with the seconds since the start.

    Raises:
        ServerNotStarted: the server is not installed, or was not ready `ready_within` seconds.

    """
    if importlib.util.find_spec("localwhisper_server") is None or importlib.util.find_spec("faster_whisper") is None:
        raise ServerNotStarted(f"the server is not installed. Install it with: {install_command('server,offline')}")
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-P", "-m", "localwhisper_server", "--port", "0", *options],
        env=None if environ is None else dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    lines: list[str] = []
    url: list[str] = []

    def read_log() -> None:
        # To the end, or the server's log would find the pipe full.
        for line in process.stderr or ():
            lines.append(line)
            del lines[:-20]
            if not url and (match := _LISTENING.search(line)):
                url.append(match[1])

    reader = threading.Thread(target=read_log, daemon=True)
    reader.start()
    started = time.monotonic()
    try:
        while not (url and ServerProcess(url[0], process).ready()):
            waited = time.monotonic() - started
            if process.poll() is not None:
                reader.join(STOP_SECONDS)
                raise ServerNotStarted("the server did not start:\n" + "".join(lines))
            if waited > ready_within:
                raise ServerNotStarted(f"the server was not ready within {ready_within:.0f} s:\n" + "".join(lines))
            on_wait(waited)
            time.sleep(POLL_SECONDS)
        yield ServerProcess(url[0], process)
    finally:
        ServerProcess("", process).stop(stop_within)
        reader.join(STOP_SECONDS)
        if process.stderr is not None:
            process.stderr.close()
