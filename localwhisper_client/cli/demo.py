"""`localwhisper demo`: a real voice message through a real server, then the fallback when that server is stopped.

Nothing leaves the machine: the demo's cloud is a stand-in on a loopback port, and says so.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from localwhisper_client.cli import stop
from localwhisper_client.client import LocalWhisper
from localwhisper_client.events import last_call
from localwhisper_client.server_process import ServerNotStarted, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

VOICE = Path(__file__).parents[1] / "demo.ogg"
STAND_IN_TEXT = "(the stand-in cloud does not transcribe: this sentence is fixed)"


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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


def demo(model: Annotated[str, typer.Option(help="The model that the server loads.")] = "base") -> None:
    """Try it out: start a server, transcribe a voice message, stop the server, and see the fallback answer.

    - `localwhisper demo`
    - `localwhisper demo --model small`

    Nothing leaves this machine; the cloud of the fallback is a stand-in. The first run downloads a model that is not
    on the disk yet.

    Exit code: 0 if both answers came as they should, 1 otherwise.
    """
    console = Console(highlight=False)
    with stand_in_cloud() as cloud, contextlib.ExitStack() as lan:
        with console.status(f"Starting localwhisper-server with the model {model} …"):
            try:
                server = lan.enter_context(serving("--model", model))
            except ServerNotStarted as failure:
                stop("demo", str(failure), 1)
        console.print(f"A server is up at {server.base_url}, with the model {model}.\n")
        client = LocalWhisper(local_base_url=server.base_url, policy="cloud", base_url=cloud, api_key="not-a-real-key")
        lan.enter_context(client)
        console.print("A voice message of five seconds, transcribed on the LAN:")
        _transcribe(console, client, expect_cloud=False)
        console.print("\nNow the server is stopped, and the same call is made once more. Its policy is `cloud`;")
        console.print("the cloud is a stand-in on this machine, so nothing leaves it and nothing is paid:")
        server.stop()
        _transcribe(console, client, expect_cloud=True)
    console.print("\nWithout the policy `cloud`, the second call would have failed: audio stays on the LAN.")


def _transcribe(console: Console, client: LocalWhisper, *, expect_cloud: bool) -> None:
    started = time.perf_counter()
    with console.status("Transcribing …"), VOICE.open("rb") as voice:
        transcript = client.audio.transcriptions.create(file=voice, model="whisper-1", response_format="verbose_json")
    took = time.perf_counter() - started
    last = last_call()
    where = "the stand-in cloud" if last and last.cloud else "on the LAN"
    console.print(f"  words        {transcript.text.strip()}", markup=False, soft_wrap=True)
    console.print(f"  language     {transcript.language}")
    console.print(f"  took         {took:.2f} s")
    console.print(f"  answered by  {last and last.backend} ({where})", soft_wrap=True)
    if last is None or last.cloud is not expect_cloud or not transcript.text.strip():
        stop("demo", "that is not how it should have come out.", 1)
