"""`localwhisper-server doctor`: every check in the order in which a broken thing breaks the next, and the report."""

from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from localwhisper_client._version import __version__
from localwhisper_server.operations.doctor import hardware, network, report, trial
from localwhisper_server.operations.doctor.machine import Machine
from localwhisper_server.operations.doctor.report import Finding
from localwhisper_server.settings import Settings

HARDWARE = (
    hardware.check_python,
    hardware.check_engine,
    hardware.check_gpu,
    hardware.check_device,
    hardware.check_libraries,
    hardware.check_precision,
    hardware.check_model,
)
NETWORK: tuple[Callable[[Machine, Settings], Iterable[Finding]], ...] = (
    network.check_wsl,
    network.check_port,
    network.check_addresses,
    network.check_firewall,
    network.check_name,
)


def examine(machine: Machine, settings: Settings, say: Callable[[str], None]) -> Iterator[Finding]:
    """Yield the findings, one by one, as they are made."""
    say("asking CTranslate2 and the driver")
    seen = hardware.survey(machine, settings)
    works = True
    for look in HARDWARE:
        for finding in look(seen):
            works = works and finding.status != "fault"
            yield finding
    for check in NETWORK:
        yield from check(machine, settings)
    yield from network.check_clock(machine)
    if works:
        model_here = bool(seen.answer and seen.answer["folder"])
        yield trial.try_out(machine, settings, model_here=model_here, say=say)
    else:
        yield report.warning(trial.NAME, "not tried, since a fault above would fail it")


def run(machine: Machine, settings: Settings, *, as_json: bool, out: TextIO, progress: TextIO) -> int:
    """Print the report to `out` and what takes time to `progress`; return 1 if anything is at fault, else 0."""
    colour = out.isatty() and not machine.environ.get("NO_COLOR")
    status = _StatusLine(progress)
    findings = []
    for finding in examine(machine, settings, status.show):
        findings.append(finding)
        if not as_json:
            status.clear()
            print(report.as_text(finding, colour=colour), file=out, flush=True)
    status.clear()
    if as_json:
        print(report.as_json(findings, __version__), file=out)
    else:
        print(f"\n{report.verdict(findings)}", file=out)
    return 0 if report.healthy(findings) else 1


class _StatusLine:
    """One line that says what is going on and is gone when it is done; nothing where nobody watches."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._watched = stream.isatty()

    def show(self, text: str) -> None:
        if self._watched:
            self._stream.write(f"\r\x1b[K{text} …")
            self._stream.flush()

    def clear(self) -> None:
        if self._watched:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
