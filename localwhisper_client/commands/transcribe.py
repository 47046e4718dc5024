"""`localwhisper transcribe`: recordings in, files of text out."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import anyio
import openai
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from localwhisper_client.client import AsyncLocalWhisper
from localwhisper_client.commands import files
from localwhisper_client.errors import ConfigurationError, HouseUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

SOME_FAILED, USAGE, NOBODY_THERE, INTERRUPTED = 1, 2, 3, 130


class Format(StrEnum):
    """The formats of a transcript."""

    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    JSON = "json"
    VERBOSE_JSON = "verbose_json"


class Fate(StrEnum):
    """What became of a recording."""

    DONE = "done"
    SKIPPED = "skipped"
    """Its transcript was there already."""
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    """Nobody was there to transcribe it: worth another try later."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report."""

    file: str
    fate: Fate
    output: str
    seconds: float
    error: str = ""
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Wishes:
    """How each recording is to be treated."""

    fields: dict[str, Any]
    timeout: float
    force: bool
    delete_after: bool


def transcribe(  # noqa: PLR0917 - typer reads the options off the arguments
    named: Annotated[list[str], typer.Argument(metavar="FILE...", help="Recordings, folders of them, or patterns.")],
    format_: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = Format.TEXT,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to; default: beside each.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Recordings at a time.")] = 2,
    language: Annotated[str | None, typer.Option(help="Such as en; default: found out.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Names and words to expect.")] = None,
    model: Annotated[str, typer.Option(help="whisper-1 means whatever the server runs.")] = "whisper-1",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one recording.")] = 3600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Report in JSON, a line per file.")] = False,  # noqa: FBT002 - a flag
    force: Annotated[bool, typer.Option("--force", help="Replace transcripts that are there.")] = False,  # noqa: FBT002
    delete_after: Annotated[  # noqa: FBT002
        bool, typer.Option("--delete-after", help="Delete each recording once its transcript is on the disk.")
    ] = False,
) -> None:
    """Write the words of recordings into files: `voice.ogg` becomes `voice.txt` beside it.

    - `localwhisper transcribe voice.ogg`
    - `localwhisper transcribe --format srt --out subtitles films/*.mkv`
    - `localwhisper transcribe --jobs 4 --language de recordings/`

    A folder means the recordings in it and in its folders. A transcript that is there already is left as it is and
    its recording skipped, so the same line goes on where it was interrupted; --force does them again.

    Exit code: 0 every recording has its transcript; 1 some failed; 2 wrong arguments or settings; 3 nobody could be
    reached, try again later; 130 interrupted.
    """
    try:
        work = files.plan(named, format_, out)
        client = AsyncLocalWhisper()
    except (files.Unusable, ConfigurationError) as wrong:
        _stop(str(wrong), USAGE)
    except openai.OpenAIError:
        _stop(
            "LOCALWHISPER_POLICY=cloud asks for OpenAI's cloud too, and there is no key for it: set OPENAI_API_KEY, or "
            "LOCALWHISPER_POLICY=local_only to stay in the house",
            USAGE,
        )
    fields = {"model": model, "response_format": format_.value, "language": language, "prompt": prompt}
    wishes = Wishes({name: value for name, value in fields.items() if value}, timeout, force, delete_after)
    report = _Report(len(work), as_json=as_json)
    try:
        with report:
            anyio.run(_all, client, work, wishes, jobs, report)
    except KeyboardInterrupt:
        _stop(f"interrupted; {report.summary()}", INTERRUPTED)
    except OSError as failure:
        _stop(str(failure), SOME_FAILED)
    raise typer.Exit(report.exit_code())


class _Report:
    """Says what becomes of each recording: bars on a terminal, a line each in a pipe, JSON where that is wished for."""

    def __init__(self, total: int, *, as_json: bool) -> None:
        self._json = as_json
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._bar = self._progress.add_task("Transcribing", total=total, count=f"0/{total}")
        self._total = total
        self.results: list[Result] = []

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if kind is None and self._total > 1 and not self._json:
            self._console.print(self.summary(), markup=False)

    def begin(self, job: files.Job) -> Any:
        """Show a recording that is being worked on."""
        return self._progress.add_task(f"  {job.recording.name}", total=None, count="")

    def end(self, task: Any, result: Result) -> None:
        """Tell of one that is over."""
        self.results.append(result)
        self._progress.remove_task(task)
        self._progress.update(self._bar, advance=1, count=f"{len(self.results)}/{self._total}")
        if self._json:
            self._say(json.dumps(asdict(result), ensure_ascii=False))
        elif result.fate is Fate.DONE:
            self._say(f"{result.file} -> {result.output} ({result.seconds:.1f} s)")
        elif result.fate is Fate.SKIPPED:
            self._say(f"{result.file}: skipped, {result.output} is there already")
        if result.error:
            self._console.print(f"{result.file}: {result.error}", markup=False, soft_wrap=True)

    def _say(self, line: str) -> None:
        if sys.stdout.isatty() and self._console.is_terminal:
            self._console.print(line, markup=False, soft_wrap=True)
        else:
            typer.echo(line)

    def summary(self) -> str:
        """Return the counts in words."""
        counts = {fate: sum(result.fate is fate for result in self.results) for fate in Fate}
        return ", ".join(f"{count} {fate}" for fate, count in counts.items() if count) or "nothing was done"

    def exit_code(self) -> int:
        """Return what a script is to think of it."""
        bad = {result.fate for result in self.results} - {Fate.DONE, Fate.SKIPPED}
        if not bad:
            return 0
        return NOBODY_THERE if bad == {Fate.UNREACHABLE} else SOME_FAILED


async def _all(
    client: AsyncLocalWhisper, work: Sequence[files.Job], wishes: Wishes, jobs: int, report: _Report
) -> None:
    # An interruption cancels every worker where it waits: for the server, which then hears that nobody listens.
    # Writing has no such point in it, so a transcript is there whole or not at all.
    rest = iter(work)
    async with client, anyio.create_task_group() as workers:
        for _ in range(jobs):
            workers.start_soon(_worker, client, rest, wishes, report)


async def _worker(client: AsyncLocalWhisper, rest: Iterator[files.Job], wishes: Wishes, report: _Report) -> None:
    for job in rest:
        task = report.begin(job)
        report.end(task, await _one(client, job, wishes))


async def _one(client: AsyncLocalWhisper, job: files.Job, wishes: Wishes) -> Result:
    started = time.monotonic()

    def over(fate: Fate, error: str = "", *, deleted: bool = False) -> Result:
        seconds = round(time.monotonic() - started, 3)
        return Result(str(job.recording), fate, str(job.transcript), seconds, error, deleted)

    if job.transcript.exists() and not wishes.force:
        return over(Fate.SKIPPED)
    try:
        with job.recording.open("rb") as recording:
            answer = await client.audio.transcriptions.with_raw_response.create(
                file=recording, timeout=wishes.timeout, **wishes.fields
            )
        files.write(job.transcript, answer.content, replace=wishes.force)
        if wishes.delete_after:
            job.recording.unlink()
    except FileExistsError:
        return over(Fate.SKIPPED)
    except HouseUnavailable as failure:
        return over(Fate.UNREACHABLE, failure.message)
    except (openai.OpenAIError, OSError) as failure:
        return over(Fate.FAILED, str(failure))
    return over(Fate.DONE, deleted=wishes.delete_after)


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(f"localwhisper transcribe: {message}", err=True)
    raise typer.Exit(code)
