"""`localwhisper transcribe`: recordings in, files of text out."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import IO, TYPE_CHECKING, Annotated, Any, NoReturn

import anyio
import anyio.to_thread
import openai
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from localwhisper_client.cli import files
from localwhisper_client.client import AsyncLocalWhisper
from localwhisper_client.cloud import media
from localwhisper_client.errors import ConfigurationError, LocalServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

SOME_FAILED, USAGE, NOBODY_THERE, INTERRUPTED = 1, 2, 3, 130
TOO_LARGE = 413
NAMES_SHOWN = 20


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
    LEFT_OUT = "left out"
    """It lies in a folder and does not end like a recording."""
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    """NullObserver was there to transcribe it: worth another try later."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report."""

    file: str
    fate: Fate
    output: str
    seconds: float
    error: str = ""
    deleted: bool = False
    kept: str = ""
    """Why --delete-after left a recording that has its transcript."""


@dataclass(frozen=True, slots=True)
class CallOptions:
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
        bool, typer.Option("--delete-after", help="Delete each recording once its words are surely on the disk.")
    ] = False,
) -> None:
    """Write the words of recordings into files: `voice.ogg` becomes `voice.txt` beside it.

    - `localwhisper transcribe voice.ogg`
    - `localwhisper transcribe --format srt --out subtitles films/*.mkv`
    - `localwhisper transcribe --jobs 4 --language de recordings/`

    A folder means the recordings in it and in its folders; what does not end like one is left out, and named. A
    transcript that is there already is left as it is and its recording skipped, so the same line goes on where it was
    interrupted; --force does them again. `a.ogg` beside `a.mp3` becomes `a.ogg.txt`.

    --delete-after deletes nothing but what was sent, and only after an answer that proves itself: JSON with a text, or
    any format from a localwhisper-server or OpenAI. A recording that changes meanwhile or has no words in it stays.

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
            "LOCALWHISPER_POLICY=local_only to stay on the LAN",
            USAGE,
        )
    fields = {"model": model, "response_format": format_.value, "language": language, "prompt": prompt}
    wishes = CallOptions({name: value for name, value in fields.items() if value}, timeout, force, delete_after)
    report = _Report(len(work.jobs), as_json=as_json)
    try:
        with report:
            report.left_out(work)
            anyio.run(_all, client, work.jobs, wishes, jobs, report)
    except KeyboardInterrupt:
        _stop(f"interrupted; {report.summary()}", INTERRUPTED)
    except ExceptionGroup as failures:  # of the report: nothing takes what it prints
        _stop(str(failures.exceptions[0]), SOME_FAILED)
    raise typer.Exit(report.exit_code())


class _Report:
    """Says what becomes of each recording: bars on a terminal, a line each in a pipe, JSON where that is wished for."""

    def __init__(self, total: int, *, as_json: bool) -> None:
        self._json = as_json
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._bar = self._progress.add_task("Transcribing", total=total, count=f"0/{total}")
        self._total = total
        self._ended = 0
        self.results: list[Result] = []

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if kind is None and self._total > 1 and not self._json:
            self._console.print(self.summary(), markup=False)

    def left_out(self, work: files.Plan) -> None:
        """Name what is in the folders and is not transcribed."""
        self.results += [Result(str(each), Fate.LEFT_OUT, "", 0.0) for each in work.left_out]
        self.results += [Result(str(each.filename), Fate.FAILED, "", 0.0, str(each)) for each in work.unreadable]
        if self._json:
            for result in self.results:
                self._say(json.dumps(asdict(result)))
        elif work.left_out:
            names = ", ".join(map(str, work.left_out[:NAMES_SHOWN]))
            more = len(work.left_out) - NAMES_SHOWN
            names += f" and {more} more" if more > 0 else ""
            line = f"left out, since they do not end like recordings: {names}. A file that is named itself is sent."
            self._console.print(line, markup=False, soft_wrap=True)
        for result in self.results:
            if result.error:
                self._console.print(f"{result.file}: {result.error}", markup=False, soft_wrap=True)

    def begin(self, job: files.Job) -> Any:
        """Show a recording that is being worked on."""
        return self._progress.add_task(f"  {job.recording.name}", total=None, count="")

    def end(self, task: Any, result: Result) -> None:
        """Tell of one that is over."""
        self.results.append(result)
        self._progress.remove_task(task)
        self._ended += 1
        self._progress.update(self._bar, advance=1, count=f"{self._ended}/{self._total}")
        if self._json:
            self._say(json.dumps(asdict(result)))  # in ASCII, which keeps every name whole
        elif result.fate is Fate.DONE:
            self._say(f"{result.file} -> {result.output} ({result.seconds:.1f} s)")
        elif result.fate is Fate.SKIPPED:
            self._say(f"{result.file}: skipped, {result.output} is there already")
        if said := result.error or (result.kept and f"not deleted: {result.kept}"):
            self._console.print(f"{result.file}: {said}", markup=False, soft_wrap=True)

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
        bad = {result.fate for result in self.results} - {Fate.DONE, Fate.SKIPPED, Fate.LEFT_OUT}
        if not bad:
            return 0
        return NOBODY_THERE if bad == {Fate.UNREACHABLE} else SOME_FAILED


async def _all(
    client: AsyncLocalWhisper, work: Sequence[files.Job], wishes: CallOptions, jobs: int, report: _Report
) -> None:
    # An interruption cancels every worker where it waits: for the server, which then hears that nobody listens.
    # Writing has no such point in it, so a transcript is there whole or not at all.
    rest = iter(work)
    async with client, anyio.create_task_group() as workers:
        for _ in range(jobs):
            workers.start_soon(_worker, client, rest, wishes, report)


async def _worker(client: AsyncLocalWhisper, rest: Iterator[files.Job], wishes: CallOptions, report: _Report) -> None:
    for job in rest:
        task = report.begin(job)
        report.end(task, await _one(client, job, wishes))


async def _one(client: AsyncLocalWhisper, job: files.Job, wishes: CallOptions) -> Result:
    started = time.monotonic()

    def over(fate: Fate, error: str = "", *, deleted: bool = False, kept: str = "") -> Result:
        seconds = round(time.monotonic() - started, 3)
        return Result(str(job.recording), fate, str(job.transcript), seconds, error, deleted, kept)

    try:
        if job.transcript.exists() and not wishes.force:
            return over(Fate.SKIPPED)
        kept = await _transcribe(client, job, wishes)
    except FileExistsError:
        return over(Fate.SKIPPED)
    except LocalServerUnavailable as failure:
        return over(Fate.UNREACHABLE, failure.message)
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is this file's alone
        return over(Fate.FAILED, str(failure) or type(failure).__name__)
    return over(Fate.DONE, deleted=wishes.delete_after and not kept, kept=kept)


async def _transcribe(client: AsyncLocalWhisper, job: files.Job, wishes: CallOptions) -> str:
    """Write a recording's transcript, and delete it where that is wished for; return why it was kept all the same."""
    with job.recording.open("rb") as recording:
        before = files.identity(os.fstat(recording.fileno()))
        answer = await _ask(client, job.recording.name, recording, wishes)
        if not wishes.delete_after:
            files.write(job.transcript, answer.content, replace=wishes.force)
            return ""
        format_ = wishes.fields["response_format"]
        wrong = files.doubt(format_, answer.headers, answer.content)
        if wrong := wrong or files.change(job.recording, recording.fileno(), before):
            raise files.Unusable(f"nothing was written or deleted: {wrong}")
        files.write(job.transcript, answer.content, replace=wishes.force)
        kept = "" if files.has_words(format_, answer.content) else "there are no words in it"
        kept = kept or files.change(job.recording, recording.fileno(), before)
    if not kept:
        job.recording.unlink(missing_ok=True)
    return kept


async def _ask(client: AsyncLocalWhisper, name: str, recording: IO[bytes], wishes: CallOptions) -> Any:
    """Send a recording; one that is too large for the server as its sound alone, and that at a lower bit rate."""
    create = partial(client.audio.transcriptions.with_raw_response.create, timeout=wishes.timeout, **wishes.fields)
    try:
        # Not every name can be sent: file systems keep bytes, a form has text.
        return await create(file=(os.fsencode(name).decode(errors="replace"), recording))
    except openai.APIStatusError as refusal:
        if refusal.status_code != TOO_LARGE:
            raise
        too_large = f"{refusal.message} A server takes more if it is started with a larger --max-upload (bytes)."
    with tempfile.TemporaryFile() as sound:
        for ending, shrink in (("mka", partial(media.soundtrack, target=sound)), ("ogg", media.to_opus)):
            try:
                smaller = await anyio.to_thread.run_sync(shrink, recording)
                if smaller is not None:
                    return await create(file=(f"sound.{ending}", smaller))
            except ModuleNotFoundError:
                too_large += " Or only the sound is sent, after: pip install 'localwhisper-lan[transcode]'"
                break
            except media.Unreadable:
                continue
            except openai.APIStatusError as refusal:
                if refusal.status_code != TOO_LARGE:
                    raise
    raise files.Unusable(too_large)


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(f"localwhisper transcribe: {message}", err=True)
    raise typer.Exit(code)
