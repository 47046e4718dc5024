"""What `localwhisper transcribe` says: what became of each recording, how far it is, and at the end what failed."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from localwhisper_client.cli.files import Fate, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

SOME_FAILED, UNREACHABLE = 1, 3
BAD = (Fate.FAILED, Fate.UNREACHABLE)
# More lines than this have scrolled away by the end.
SCREEN = 20
# At the end: so many reasons, and so many recordings of each. --json has all.
REASONS, EXAMPLES = 20, 10
# The time left follows the speed of the last ten minutes: recordings have very different lengths.
SPEED_SECONDS = 600.0


class Report:
    """Reports what became of each recording: a bar on a terminal, a line each in a pipe, or JSON.

    Keeps counts and a few failures, not the results: there may be any number of recordings. `total` is how many there
    are, `size` their bytes, and `there` the bytes of those that have a transcript already.
    """

    def __init__(self, total: int, size: int, there: int, *, as_json: bool) -> None:
        self._json = as_json
        self._total = total
        self._began = time.monotonic()
        self._console = Console(stderr=True, highlight=False)
        self._counts: Counter[Fate] = Counter()
        self._failures: dict[str, list[str]] = {}
        self._failed: Counter[str] = Counter()
        self.progress = Progress(
            TextColumn("Transcribing"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            _Time(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
            speed_estimate_period=SPEED_SECONDS,
        )
        # The bar counts bytes: one recording may have an hour, and the next one five seconds. What it begins with does
        # not count as speed.
        self._bar = self.progress.add_task(self._position(), total=max(1, size), completed=there)

    def add(self, result: Result, size: int = 0) -> None:
        """Report what became of a file; `size` is by how many bytes the bar moves."""
        self._counts[result.fate] += 1
        if result.fate in BAD:
            self._keep(result)
        if self._json:
            self._print(json.dumps(asdict(result)))  # in ASCII, which keeps every file name whole
        elif result.fate is Fate.DONE:
            self._print(f"{result.file} -> {result.output} ({result.seconds:.1f} s)")
        elif result.fate is Fate.SKIPPED:
            self._print(f"{result.file}: skipped, {result.output} exists already")
        elif result.fate is Fate.LEFT_OUT:
            self.explain(f"{result.file}: left out, since its name does not end like a recording's")
        if reason := result.error or (result.kept and f"not deleted: {result.kept}"):
            self.explain(f"{result.file}: {reason}")
        self.progress.update(self._bar, advance=size, description=self._position())

    def add_skipped(self, results: Sequence[Result]) -> None:
        """Report recordings whose transcripts exist: a line each, or one for all if they would fill the screen."""
        if self._json or len(results) <= SCREEN:
            for result in results:
                self.add(result)
            return
        self._counts[Fate.SKIPPED] += len(results)
        self._print(f"{len(results)} recordings: skipped, their transcripts exist already")
        self.progress.update(self._bar, description=self._position())

    def explain(self, line: str) -> None:
        """Write a line to standard error."""
        self._console.print(line, markup=False, soft_wrap=True)

    def explain_all(self) -> None:
        """Write the end of the report, if it is not for a program: what failed, if that has scrolled away; counts."""
        if self._json or self._total < 2:  # noqa: PLR2004 - its line says it all
            return
        if self._failures and self._total > SCREEN:
            self.explain("")
            for reason, recordings in self._failures.items():
                self.explain(f"{self._failed[reason]} failed: {reason}")
                for recording in recordings:
                    self.explain(f"  {recording}")
                if (more := self._failed[reason] - len(recordings)) > 0:
                    self.explain(f"  and {more} more")
            if (more := self._counts[Fate.FAILED] + self._counts[Fate.UNREACHABLE] - self._failed.total()) > 0:
                self.explain(f"{more} failed for other reasons")
            self.explain("The same command tries them again, and skips what is done.")
        self.explain(f"{self.summary()} in {_clock(time.monotonic() - self._began)}")

    def summary(self) -> str:
        """Return the counts in words."""
        return ", ".join(f"{self._counts[fate]} {fate}" for fate in Fate if self._counts[fate]) or "nothing was done"

    def exit_code(self) -> int:
        """Return the command's exit code."""
        if self._counts[Fate.FAILED]:
            return SOME_FAILED
        return UNREACHABLE if self._counts[Fate.UNREACHABLE] else 0

    def _keep(self, result: Result) -> None:
        if result.error not in self._failures and len(self._failures) >= REASONS:
            return
        kept = self._failures.setdefault(result.error, [])
        self._failed[result.error] += 1
        if len(kept) < EXAMPLES:
            kept.append(result.file)

    def _position(self) -> str:
        """Return how many recordings are through, for the bar."""
        through = sum(count for fate, count in self._counts.items() if fate is not Fate.LEFT_OUT)
        failed = self._counts[Fate.FAILED] + self._counts[Fate.UNREACHABLE]
        return f"{min(through, self._total)}/{self._total}" + (f", {failed} failed" if failed else "")

    def _print(self, line: str) -> None:
        if sys.stdout.isatty() and self._console.is_terminal:
            self.explain(line)  # above the bar
        else:
            typer.echo(line)


class _Time(ProgressColumn):
    """How long it will take, or how long it took so far while that is not known."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        left = task.time_remaining
        return Text(f"{_clock(task.elapsed or 0.0)} so far" if left is None else f"{_clock(left)} left")


def _clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    return str(timedelta(seconds=int(seconds)))
