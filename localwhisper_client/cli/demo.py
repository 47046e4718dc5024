"""`localwhisper demo`: a real voice message through a real server, then the fallback when that server is stopped.

Nothing leaves the machine: the demo's cloud is a stand-in on a loopback port, and says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from localwhisper_client.cli import stop
from localwhisper_client.client import LocalWhisper
from localwhisper_client.events import Attempt, Event

if TYPE_CHECKING:
    from collections.abc import Iterator

VOICE = Path(__file__).parents[1] / "demo.ogg"
STAND_IN_TEXT = "(the stand-in cloud does not transcribe: this sentence is fixed)"
START_SECONDS = 300.0  # a model that is not on disk yet is downloaded first
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05

_LISTENING = re.compile(r"listening on (http://\S+)")


class DemoError(Exception):
    """The demo cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server process. `url` is its address, without /v1."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def base_url(self) -> str:
        """What goes into OPENAI_BASE_URL."""
        return f"{self.url}/v1"

    def health(self) -> dict[str, Any]:
        """Return the answer of its `/health`.

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
        """Stop it, by force if it does not end within `STOP_SECONDS`."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def serving(*options: str, ready_within: float = START_SECONDS) -> Iterator[Server]:
    """Run a server process on a free loopback port; give it when its model is loaded, and stop it after the block.

    `options` are added to its command line; `ready_within` is in seconds.

    Raises:
        DemoError: the server is not installed, or did not become ready (its last lines say why).

    """
    if importlib.util.find_spec("localwhisper_server") is None or importlib.util.find_spec("faster_whisper") is None:
        raise DemoError("the server is not installed. Install it with: pip install 'localwhisper-lan[server,offline]'")
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "localwhisper_server", "--port", "0", *options],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            yield _ready(process, Path(log.name), ready_within)
        finally:
            Server("", process).stop()


def _ready(process: subprocess.Popen[bytes], log: Path, within: float) -> Server:
    """Wait until a server has said in its log where it listens, and has loaded its model."""
    until = time.monotonic() + within
    while True:
        lines = log.read_text(encoding="utf-8", errors="replace")
        if address := _LISTENING.search(lines):
            server = Server(address[1], process)
            if server.ready():
                return server
        if process.poll() is not None or time.monotonic() > until:
            failure = "did not start" if process.poll() is not None else f"was not ready within {within:.0f} s"
            raise DemoError(f"the server {failure}:\n" + "\n".join(lines.splitlines()[-20:]))
        time.sleep(POLL_SECONDS)


class _StandIn(BaseHTTPRequestHandler):
    """Answers every POST as OpenAI answers a transcription, with a fixed sentence."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"text": STAND_IN_TEXT, "language": "english", "duration": 0.0}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: the demo itself says what happens."""


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


def demo(model: Annotated[str, typer.Option(help="The model that the server loads.")] = "base") -> None:
    """Try it out: start a server, transcribe a voice message, stop the server, and see the fallback answer.

    - `localwhisper demo`
    - `localwhisper demo --model small`

    Nothing leaves this machine; the cloud of the fallback is a stand-in. The first run downloads a model that is not
    on the disk yet.

    Exit code: 0 if both answers came as they should, 1 otherwise.
    """
    try:
        _show(Console(highlight=False), model)
    except DemoError as failure:
        stop("demo", str(failure), 1)


def _show(console: Console, model: str) -> None:
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
    console.print("\nWithout the policy `cloud`, the second call would have failed: audio stays on the LAN.")


def _transcribe(console: Console, client: LocalWhisper, attempts: list[Attempt], *, expect_cloud: bool) -> None:
    attempts.clear()
    started = time.perf_counter()
    with console.status("Transcribing …"), VOICE.open("rb") as voice:
        transcript = client.audio.transcriptions.create(file=voice, model="whisper-1", response_format="verbose_json")
    took = time.perf_counter() - started
    answered = attempts[-1]
    where = "the stand-in cloud" if answered.cloud else "on the LAN"
    console.print(f"  words        {transcript.text.strip()}", markup=False, soft_wrap=True)
    console.print(f"  language     {transcript.language}")
    console.print(f"  took         {took:.2f} s")
    console.print(f"  answered by  {answered.backend} ({where})", soft_wrap=True)
    if answered.cloud is not expect_cloud or not transcript.text.strip():
        raise DemoError("that is not how it should have come out.")
