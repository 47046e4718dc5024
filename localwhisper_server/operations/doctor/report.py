"""What `doctor` found, as text for people or as JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}
_NAME_WIDTH = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: what was checked, its state, and, unless it is ok, lines that say how to fix it."""

    name: str
    status: Literal["ok", "warning", "fault"]
    message: str
    fix: Sequence[str] = ()


def ok(name: str, message: str, *fix: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(name, "ok", message, fix)


def warning(name: str, message: str, *fix: str) -> Finding:
    """Return a finding that does not keep the server from working."""
    return Finding(name, "warning", message, fix)


def fault(name: str, message: str, *fix: str) -> Finding:
    """Return a finding that keeps the server from working."""
    return Finding(name, "fault", message, fix)


def healthy(findings: Iterable[Finding]) -> bool:
    """Return whether there is no fault."""
    return all(finding.status != "fault" for finding in findings)


def show(finding: Finding, console: Console) -> None:
    """Print a finding. Its lines are not wrapped, so that commands can be copied."""
    line = Text.assemble((f"{finding.status:<8}", _STYLES[finding.status]), f" {finding.name:<{_NAME_WIDTH}} ")
    console.print(line.append(finding.message), soft_wrap=True)
    for fix in finding.fix:
        console.print(Text(" " * (_NAME_WIDTH + 10) + fix), soft_wrap=True)


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line of the report."""
    faults = sum(finding.status == "fault" for finding in findings)
    warnings = sum(finding.status == "warning" for finding in findings)
    if faults:
        return f"{_count(faults, 'fault')}, {_count(warnings, 'warning')}. Fix the first fault, then run this again."
    if warnings:
        return f"The server works. {_count(warnings, 'warning')} above."
    return "Everything is in order."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def as_json(findings: Sequence[Finding], version: str) -> str:
    """Return the report for a program: {"ok", "version", "findings": [{"name", "status", "message", "fix"}]}."""
    report = {"ok": healthy(findings), "version": version, "findings": [asdict(finding) for finding in findings]}
    return json.dumps(report, indent=2, ensure_ascii=False)
