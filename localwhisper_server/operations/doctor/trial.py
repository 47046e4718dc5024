"""The end-to-end check of `doctor`: the stock OpenAI SDK sends a voice message to a real server and reads the answer.

Against the server that already runs, or, where there is none, one that is started for it on a free loopback port.
"""

import contextlib
import importlib.resources
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import openai

from localwhisper_server.operations.doctor.machine import Machine
from localwhisper_server.operations.doctor.network import local_url
from localwhisper_server.operations.doctor.report import Finding, fault, ok, warning
from localwhisper_server.settings import ENV_PREFIX, Settings, written

NAME = "End to end"
# Loading large weights from a slow disk, then warming up.
START_SECONDS = 180.0
ANSWER_SECONDS = 120.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.2

Say = Callable[[str], None]


class Failed(Exception):
    """The server did not come up; the message is what it last said."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where to send the voice message; `own` if it was started for that."""

    url: str
    own: bool


def try_out(machine: Machine, settings: Settings, *, model_here: bool, say: Say) -> Finding:
    """Send a voice message through the server and judge the answer. `say` hears of each step, as it takes seconds."""
    try:
        settings.keys()
    except (OSError, ValueError) as failure:
        return fault(NAME, f"--api-key-file: {failure}", "The server would not start either.")
    running = settings.port and machine.health(f"{local_url(settings)}/health")
    if not running and not model_here:
        return warning(NAME, "not tried: the model is not here yet", "Start the server once, then look again.")
    try:
        with contextlib.ExitStack() as stack:
            if running:
                server = Server(local_url(settings), own=False)
            else:
                server = Server(stack.enter_context(started(settings, machine.environ, machine.health, say)), own=True)
            say("sending a voice message")
            return transcribe(server, settings)
    except Failed as failure:
        return fault(NAME, "a server started for this check did not come up; it said:", *str(failure).splitlines())


def transcribe(server: Server, settings: Settings) -> Finding:
    """Ask one server, through the SDK as anybody would."""
    which = "a server started for this check" if server.own else "the running server"
    recording = importlib.resources.files("localwhisper_client").joinpath("demo.ogg").read_bytes()
    key = next(iter(settings.keys()), "none")
    # Not through a proxy that the environment may name, nor by the name in the certificate: this is the machine talking
    # to itself.
    http_client = openai.DefaultHttpxClient(trust_env=False, verify=False)
    before = time.monotonic()
    try:
        with openai.OpenAI(
            api_key=key, base_url=f"{server.url}/v1", max_retries=0, timeout=ANSWER_SECONDS, http_client=http_client
        ) as client:
            client.models.retrieve("whisper-1")
            text = client.audio.transcriptions.create(model="whisper-1", file=("demo.ogg", recording)).text
    except openai.AuthenticationError:
        return fault(NAME, f"{which} wants another key", f"Give its key: {ENV_PREFIX}API_KEY=… or --api-key")
    except openai.APIStatusError as failure:
        return fault(NAME, f"{which} answered {failure.status_code}: {failure.message}", "Its log says why.")
    except openai.APIConnectionError as failure:
        return fault(NAME, f"{which} did not answer: {failure}", "Its log says why.")
    seconds = time.monotonic() - before
    if not text.strip():
        return fault(NAME, f"{which} heard nothing in a clear voice message", "Try another --model or --compute-type.")
    return ok(NAME, f'the OpenAI SDK got "{text.strip()}" from {which} in {seconds:.1f} s')


@contextlib.contextmanager
def started(
    settings: Settings,
    environ: Mapping[str, str],
    health: Callable[[str], object],
    say: Say,
    *,
    within: float = START_SECONDS,
) -> Iterator[str]:
    """Run a server of these settings in its own process on a free loopback port; yields its address when it is ready.

    Raises:
        Failed: it ended, or was not ready `within` seconds.

    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-P", "-m", "localwhisper_server", "--host", "127.0.0.1", "--port", str(port)],
            env={**environ, **variables(settings)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            _await_ready(process, lambda: _is_ready(health(f"{url}/health")), say, within, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], say: Say, within: float, log: IO[bytes]
) -> None:
    start = time.monotonic()
    while not ready():
        waited = time.monotonic() - start
        if process.poll() is not None or waited > within:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()[-8:]
            raise Failed("\n".join(said) or f"nothing, in {waited:.0f} s")
        say(f"starting a server with its model ({waited:.0f} s)")
        time.sleep(POLL_SECONDS)


def _is_ready(answer: object) -> bool:
    return isinstance(answer, dict) and bool(answer.get("ready"))


def variables(settings: Settings) -> dict[str, str]:
    """Return all that was set, on this process's command line too, for a child; the key never goes into a command."""
    chosen = {name: written(getattr(settings, name)) for name in settings.model_fields_set}
    # On the loopback, whatever the settings say; its log is read here.
    chosen |= {"certfile": "", "keyfile": "", "announce": "false", "log_file": "none", "quiet": "false"}
    return {f"{ENV_PREFIX}{name.upper()}": value for name, value in chosen.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
