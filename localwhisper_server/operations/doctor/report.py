"""What `doctor` found, for a person or for a program."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warning", "fault"]

_COLOURS = {"ok": "32", "warning": "33", "fault": "31;1"}
_NAME_WIDTH = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, how it is, and, unless all is well, what to do, line by line."""

    name: str
    status: Status
    message: str
    fix: Sequence[str] = ()


def ok(name: str, message: str, *fix: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(name, "ok", message, fix)


def warning(name: str, message: str, *fix: str) -> Finding:
    """Say that something works, but perhaps not as wished."""
    return Finding(name, "warning", message, fix)


def fault(name: str, message: str, *fix: str) -> Finding:
    """Say that something keeps the server from working."""
    return Finding(name, "fault", message, fix)


def healthy(findings: Iterable[Finding]) -> bool:
    """Return whether nothing is at fault."""
    return all(finding.status != "fault" for finding in findings)


def as_text(finding: Finding, *, colour: bool) -> str:
    """Return a finding as aligned lines, its remedy indented so that it can be copied."""
    status = f"{finding.status:<8}"
    if colour:
        status = f"\x1b[{_COLOURS[finding.status]}m{status}\x1b[0m"
    lines = [f"{status} {finding.name:<{_NAME_WIDTH}} {finding.message}"]
    lines += [f"{'':<{_NAME_WIDTH + 10}}{line}".rstrip() for line in finding.fix]
    return "\n".join(lines)


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line of the report."""
    faults = sum(finding.status == "fault" for finding in findings)
    warnings = sum(finding.status == "warning" for finding in findings)
    if faults:
        return f"{_count(faults, 'fault')}, {_count(warnings, 'warning')}. Mend the first fault first, then look again."
    if warnings:
        return f"It works. {_count(warnings, 'warning')} above."
    return "All is well."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def as_json(findings: Sequence[Finding], version: str) -> str:
    """Return the report for a program: {"ok", "version", "findings": [{"name", "status", "message", "fix"}]}."""
    report = {"ok": healthy(findings), "version": version, "findings": [asdict(finding) for finding in findings]}
    return json.dumps(report, indent=2, ensure_ascii=False)
