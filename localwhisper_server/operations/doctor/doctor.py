"""`localwhisper-server doctor`: the report of all checks; the last one transcribes."""

import importlib.resources
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Literal, TextIO

import openai
from rich.console import Console
from rich.table import Table
from rich.text import Text

from localwhisper_client import __version__
from localwhisper_client.server_process import ServerNotStarted, serving
from localwhisper_server.operations.doctor import checks
from localwhisper_server.operations.doctor.checks import TROUBLE, Facts, Finding
from localwhisper_server.operations.doctor.machine import Machine, local_client
from localwhisper_server.settings import Settings, variable, written

TRIAL = "End to end"
ANSWER_SECONDS = 120.0
STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}

Say = Callable[[str], None]


def try_out(facts: Facts, *, say: Say) -> Finding:
    """Send a voice message through the running server, or through one that is started for this check."""
    settings = facts.settings
    try:
        key = next(iter(settings.keys()), "none")
    except (OSError, ValueError) as failure:
        return _trial("fault", f"--api-key-file: {failure}")
    if settings.port and facts.machine.health(facts.local_url):
        say("sending a voice message")
        return transcribe(facts.local_url, "the running server", key)
    if not all(model["folder"] for model in facts.engine["models"]):
        return _trial("warning", "not tried: a model is not downloaded yet; start the server once")
    try:
        with serving(
            *("--host", "127.0.0.1"),
            environ={**facts.machine.environ, **variables(settings)},
            on_wait=lambda seconds: say(f"starting a server with its model ({seconds:.0f} s)"),
        ) as server:
            say("sending a voice message")
            return transcribe(server.url, "a server started for this check", key)
    except ServerNotStarted as failure:
        return _trial("fault", "\n".join(str(failure).splitlines()[-8:]))


def transcribe(url: str, server: str, key: str) -> Finding:
    """Send a voice message to the server at `url` with the OpenAI SDK. `server` names it in the finding."""
    recording = importlib.resources.files("localwhisper_client").joinpath("demo.ogg").read_bytes()
    before = time.monotonic()
    try:
        with openai.OpenAI(
            api_key=key, base_url=f"{url}/v1", max_retries=0, timeout=ANSWER_SECONDS, http_client=local_client()
        ) as client:
            client.models.retrieve("whisper-1")
            text = client.audio.transcriptions.create(model="whisper-1", file=("demo.ogg", recording)).text.strip()
    except openai.APIStatusError as failure:
        return _trial("fault", f"{server} answered: {failure.message}")
    except openai.APIConnectionError as failure:
        return _trial("fault", f"{server} did not answer: {failure}")
    if not text:
        return _trial("fault", f"{server} found no words in a clear recording")
    seconds = time.monotonic() - before
    return Finding(TRIAL, "ok", f'the OpenAI SDK got "{text}" from {server} in {seconds:.1f} s')


def _trial(status: Literal["warning", "fault"], message: str) -> Finding:
    return Finding(TRIAL, status, message, TROUBLE)


def variables(settings: Settings) -> dict[str, str]:
    """Return the settings that were set, as variables for a server on the loopback whose log is read here.

    Variables and not options: the process list must not show the key.
    """
    chosen = {name: written(getattr(settings, name)) for name in settings.model_fields_set - {"host", "port"}}
    chosen |= {"certfile": "", "keyfile": "", "announce": "false"}
    chosen |= {"log_file": "none", "log_format": "text", "log_level": "info", "quiet": "false"}
    return {variable(name): value for name, value in chosen.items()}


def run(
    machine: Machine,
    settings: Settings,
    *,
    as_json: bool,
    out: TextIO,
    progress: TextIO,
    trial: Callable[..., Finding] = try_out,
) -> int:
    """Print the report to `out` and progress to `progress`; return 1 if there is a fault, else 0.

    JSON is {"ok", "version", "findings": [{"name", "status", "message", "page"}]}. A test replaces the `trial`.
    """
    with Console(file=progress).status("") as status:
        findings = examine(machine, settings, lambda text: status.update(f"{text} …"), trial=trial)
    faults, warnings = (sum(each.status == kind for each in findings) for kind in ("fault", "warning"))
    if as_json:
        report = {"ok": not faults, "version": __version__, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(report, indent=2, ensure_ascii=False), file=out)
        return 1 if faults else 0
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        message = f"{finding.message}; see {finding.page}" if finding.page else finding.message
        table.add_row(Text(finding.status, STYLES[finding.status]), finding.name, Text(message))
    console = Console(file=out, highlight=False)
    console.print(table)
    verdict = "Fix the first fault, then run this again." if faults else "The server works."
    console.print(f"\nfaults: {faults}, warnings: {warnings}. {verdict}")
    return 1 if faults else 0


def examine(
    machine: Machine, settings: Settings, say: Say, *, trial: Callable[..., Finding] = try_out
) -> list[Finding]:
    """Make all checks; `say` is told what takes time."""
    say("asking CTranslate2 and the driver")
    facts = checks.gather(machine, settings)
    made = checks.CHECKS + (checks.ENGINE_CHECKS if facts.engine else ()) + checks.NETWORK_CHECKS
    findings = [finding for check in made if (finding := check(facts))]
    if any(finding.status == "fault" for finding in findings):
        return [*findings, Finding(TRIAL, "warning", "not tried, because of a fault above", TROUBLE)]
    return [*findings, trial(facts, say=say)]
