"""`localwhisper-server doctor`: the checks in order, each before those that depend on it; the last one transcribes."""

import importlib.resources
import time
from collections.abc import Callable, Iterator
from typing import TextIO

import openai
from rich.console import Console

from localwhisper_client import __version__
from localwhisper_client.server_process import ServerNotStarted, serving
from localwhisper_server.operations.doctor import hardware, network, report
from localwhisper_server.operations.doctor.machine import Machine
from localwhisper_server.operations.doctor.report import Finding, fault, ok, warning
from localwhisper_server.settings import ENV_PREFIX, Settings, written

TRIAL = "End to end"
# Enough to load large weights from a slow disk and to warm up.
START_SECONDS = 180.0
ANSWER_SECONDS = 120.0

Say = Callable[[str], None]


def examine(
    machine: Machine, settings: Settings, say: Say, *, trial: Callable[..., Finding] | None = None
) -> Iterator[Finding]:
    """Yield each finding as soon as it is known. `say` is told what takes time; `trial` replaces `try_out`."""
    say("asking CTranslate2 and the driver")
    survey = hardware.make_survey(machine, settings)
    healthy = True
    for finding in hardware.check(survey):
        healthy = healthy and finding.status != "fault"
        yield finding
    yield from network.check(machine, settings)
    if healthy:
        has_model = bool(survey.answer and survey.answer["folder"])
        yield (trial or try_out)(machine, settings, has_model=has_model, say=say)
    else:
        yield warning(TRIAL, "not tried, because of a fault above")


def run(
    machine: Machine,
    settings: Settings,
    *,
    as_json: bool,
    out: TextIO,
    progress: TextIO,
    trial: Callable[..., Finding] | None = None,
) -> int:
    """Print the report to `out` and progress to `progress`; return 1 if there is a fault, else 0."""
    console = Console(file=out, highlight=False)
    status = Console(file=progress).status("")

    def say(text: str) -> None:
        status.update(f"{text} …")
        status.start()

    findings = []
    for finding in examine(machine, settings, say, trial=trial):
        status.stop()
        findings.append(finding)
        if not as_json:
            report.show(finding, console)
    if as_json:
        print(report.as_json(findings, __version__), file=out)
    else:
        console.print(f"\n{report.verdict(findings)}")
    return 0 if report.healthy(findings) else 1


def try_out(machine: Machine, settings: Settings, *, has_model: bool, say: Say) -> Finding:
    """Send a voice message through the running server, or through one that is started for this check."""
    try:
        settings.keys()
    except (OSError, ValueError) as failure:
        return fault(TRIAL, f"--api-key-file: {failure}", "The server would not start.")
    url = network.local_url(settings)
    if settings.port and machine.health(url):
        say("sending a voice message")
        return transcribe(url, "the running server", settings)
    if not has_model:
        return warning(TRIAL, "not tried: the model is not downloaded yet", "Start the server once, then try again.")
    try:
        with serving(
            *("--host", "127.0.0.1"),
            environ={**machine.environ, **variables(settings)},
            ready_within=START_SECONDS,
            on_wait=lambda seconds: say(f"starting a server with its model ({seconds:.0f} s)"),
        ) as server:
            say("sending a voice message")
            return transcribe(server.url, "a server started for this check", settings)
    except ServerNotStarted as failure:
        return fault(TRIAL, "a server started for this check failed:", *str(failure).splitlines()[-8:])


def transcribe(url: str, server: str, settings: Settings) -> Finding:
    """Send a voice message to the server at `url` with the OpenAI SDK. `server` names it in the finding."""
    recording = importlib.resources.files("localwhisper_client").joinpath("demo.ogg").read_bytes()
    key = next(iter(settings.keys()), "none")
    # Without a proxy and without checking the certificate's name: the server is on this machine.
    http_client = openai.DefaultHttpxClient(trust_env=False, verify=False)
    before = time.monotonic()
    try:
        with openai.OpenAI(
            api_key=key, base_url=f"{url}/v1", max_retries=0, timeout=ANSWER_SECONDS, http_client=http_client
        ) as client:
            client.models.retrieve("whisper-1")
            text = client.audio.transcriptions.create(model="whisper-1", file=("demo.ogg", recording)).text.strip()
    except openai.AuthenticationError:
        return fault(TRIAL, f"{server} wants another key", f"Set its key: {ENV_PREFIX}API_KEY=… or --api-key")
    except openai.APIStatusError as failure:
        return fault(TRIAL, f"{server} answered {failure.status_code}: {failure.message}", "See its log.")
    except openai.APIConnectionError as failure:
        return fault(TRIAL, f"{server} did not answer: {failure}", "See its log.")
    if not text:
        return fault(TRIAL, f"{server} found no words in a clear recording", "Try another --model or --compute-type.")
    seconds = time.monotonic() - before
    return ok(TRIAL, f'the OpenAI SDK got "{text}" from {server} in {seconds:.1f} s')


def variables(settings: Settings) -> dict[str, str]:
    """Return the settings that were set, as variables for a server on the loopback whose log is read here.

    Variables and not options: the process list must not show the key.
    """
    chosen = {name: written(getattr(settings, name)) for name in settings.model_fields_set - {"host", "port"}}
    chosen |= {"certfile": "", "keyfile": "", "announce": "false"}
    chosen |= {"log_file": "none", "log_format": "text", "log_level": "info", "quiet": "false"}
    return {f"{ENV_PREFIX}{name.upper()}": value for name, value in chosen.items()}
