"""`localwhisper transcribe`: recordings in, files of text out."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import anyio
import anyio.to_thread
import openai
import typer

from localwhisper_client.cli import files, stop
from localwhisper_client.cli.files import Fate, Result
from localwhisper_client.cli.report import SOME_FAILED, Report
from localwhisper_client.client import AsyncLocalWhisper
from localwhisper_client.cloud import media
from localwhisper_client.errors import ConfigurationError, LocalServerUnavailable
from localwhisper_client.shared import install_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USAGE, INTERRUPTED = 2, 130
TOO_LARGE = 413
Format = Literal["text", "srt", "vtt", "json", "verbose_json"]
SUBTITLES = ("srt", "vtt")


def transcribe(  # noqa: PLR0917 - typer reads the options off the arguments
    named: Annotated[list[str], typer.Argument(metavar="FILE", help="Recordings, folders of them, or patterns.")],
    format_: Annotated[Format, typer.Option("--format", "-f", help="The transcript's format.")] = "text",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to; default: beside each.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Recordings at a time.")] = 2,
    language: Annotated[str | None, typer.Option(help="Such as en; default: the server detects it.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Names and words to expect.")] = None,
    model: Annotated[str, typer.Option(help="whisper-1 is whatever model the server runs.")] = "whisper-1",
    max_line_width: Annotated[
        int, typer.Option(min=0, max=1000, help="Columns of a line of srt and vtt; 0: cues as the model makes them.")
    ] = 42,
    max_line_count: Annotated[int, typer.Option(min=1, max=10, help="Lines of a cue.")] = 2,
    max_words_per_line: Annotated[int | None, typer.Option(min=1, max=100, help="Words of a line.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one recording.")] = 3600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Report in JSON, a line per file.")] = False,  # noqa: FBT002 - a flag
    force: Annotated[bool, typer.Option("--force", help="Replace transcripts that exist.")] = False,  # noqa: FBT002 - typer passes it by name
    delete_after: Annotated[  # noqa: FBT002 - typer passes it by name
        bool, typer.Option("--delete-after", help="Delete each recording after its transcript is safe on the disk.")
    ] = False,
) -> None:
    """Transcribe recordings into files: `voice.ogg` becomes `voice.txt` beside it.

    - `localwhisper transcribe voice.ogg`
    - `localwhisper transcribe --format srt --out subtitles films/*.mkv`
    - `localwhisper transcribe --jobs 4 --language de recordings/`

    A folder means all recordings in it and in its sub-folders. Its other files are left out, and listed; a file that
    is named itself is always sent. If a transcript exists, its recording is skipped, so the same command continues
    after an interruption; --force does it again. `a.ogg` beside `a.mp3` becomes `a.ogg.txt`.

    --delete-after deletes only recordings that were sent, and only after an answer that is surely a transcript: JSON
    with a text, or any format from localwhisper-server or OpenAI. A recording stays if it changed meanwhile, or if no
    words were found in it.

    Exit code: 0 all recordings have a transcript; 1 some failed; 2 wrong arguments or settings; 3 no server could be
    reached, try again later; 130 interrupted.
    """
    try:
        work, others = files.plan(named, format_, out)
        client = AsyncLocalWhisper()
    except (files.FilesError, ConfigurationError) as wrong:
        stop("transcribe", str(wrong), USAGE)
    except openai.OpenAIError:
        stop(
            "transcribe",
            "LOCALWHISPER_POLICY=cloud may use OpenAI's cloud, and there is no key for it: set OPENAI_API_KEY, or "
            "LOCALWHISPER_POLICY=local_only to stay on the LAN",
            USAGE,
        )
    fields: dict[str, Any] = {"model": model, "response_format": format_}
    fields |= {name: value for name, value in (("language", language), ("prompt", prompt)) if value}
    if format_ in SUBTITLES and max_line_width:
        limits = {
            "max_line_width": max_line_width,
            "max_line_count": max_line_count,
            "max_words_per_line": max_words_per_line,
        }
        # The local server's own fields; OpenAI ignores them.
        fields["extra_body"] = {name: limit for name, limit in limits.items() if limit is not None}
    there: list[files.Job] = []
    to_do: list[files.Job] = []
    for job in work:
        exists = os.path.exists(job.transcript)  # noqa: PTH110 - raises nothing
        (there if exists and not force else to_do).append(job)
    before, after = (sum(job.size() for job in some) for some in (there, to_do))
    report = Report(len(work), before + after, before, as_json=as_json)
    try:
        with report.progress:
            for other in others:
                report.add(other)
            report.add_skipped([Result(str(job.recording), Fate.SKIPPED, str(job.transcript)) for job in there])
            worker = _Worker(client, report, fields, timeout, force=force, delete_after=delete_after)
            anyio.run(worker.run, to_do, jobs)
        report.explain_all()
    except KeyboardInterrupt:
        again = "" if force else "; the same command continues"
        stop("transcribe", f"interrupted; {report.summary()}{again}", INTERRUPTED)
    except OSError as failure:  # the report could not be written, such as into a closed pipe
        stop("transcribe", str(failure), SOME_FAILED)
    except ExceptionGroup as failures:  # the same, while recordings are transcribed
        stop("transcribe", str(failures.exceptions[0]), SOME_FAILED)
    raise typer.Exit(report.exit_code())


@dataclass(frozen=True, slots=True)
class _Worker:
    """Transcribes recordings, several at a time; one that fails does not stop the others."""

    client: AsyncLocalWhisper
    report: Report
    fields: dict[str, Any]
    timeout: float
    force: bool
    delete_after: bool

    async def run(self, jobs: Sequence[files.Job], at_a_time: int) -> None:
        # Ctrl-C cancels each task where it waits for the server, and closes the connection. No task is cancelled while
        # it writes, so a transcript is written whole or not at all.
        rest = iter(jobs)
        async with self.client, anyio.create_task_group() as tasks:
            for _ in range(at_a_time):
                tasks.start_soon(self._work, rest)

    async def _work(self, rest: Iterator[files.Job]) -> None:
        for job in rest:
            size = job.size()
            self.report.add(await self._result(job), size)

    async def _result(self, job: files.Job) -> Result:
        started = time.monotonic()
        fate, error, kept = Fate.DONE, "", ""
        try:
            kept = await self._transcribe(job)
        except FileExistsError:
            fate = Fate.SKIPPED
        except LocalServerUnavailable as failure:
            fate, error = Fate.UNREACHABLE, failure.message
        except OSError as failure:
            # The report names the recording.
            of_it = failure.strerror and failure.filename in {job.recording, str(job.recording)}
            fate, error = Fate.FAILED, str(failure.strerror if of_it else failure)
        except Exception as failure:  # noqa: BLE001 - any failure is this file's alone
            fate, error = Fate.FAILED, str(failure) or type(failure).__name__
        deleted = fate is Fate.DONE and self.delete_after and not kept
        seconds = round(time.monotonic() - started, 3)
        return Result(str(job.recording), fate, str(job.transcript), seconds, error, deleted, kept)

    async def _transcribe(self, job: files.Job) -> str:
        """Write a recording's transcript, and delete the recording if asked to; return why it was kept all the same."""
        if job.transcript.exists() and not self.force:
            raise FileExistsError
        with job.recording.open("rb") as recording:
            before = os.fstat(recording.fileno())
            answer = await self._send(job.recording.name, recording)
            format_, content = self.fields["response_format"], answer.content
            if self.delete_after:
                wrong = files.missing_proof(format_, answer.headers, content)
                if wrong := wrong or files.change(job.recording, recording, before):
                    raise files.FilesError(f"nothing was written or deleted: {wrong}")
            files.write(job.transcript, content, replace=self.force)
            if not self.delete_after:
                return ""
            kept = "" if files.has_words(format_, content) else "there are no words in it"
            kept = kept or files.change(job.recording, recording, before)
        if not kept:
            job.recording.unlink(missing_ok=True)
        return kept

    async def _send(self, name: str, recording: IO[bytes]) -> Any:
        """Send a recording. If the server says that it is too large, send its sound alone, then that as Opus."""
        create = partial(self.client.audio.transcriptions.with_raw_response.create, timeout=self.timeout, **self.fields)
        try:
            # A file's name is bytes, and a form's is text.
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
                    too_large += f" Or only the sound is sent, after: {install_command('transcode')}"
                    break
                except media.Unreadable:
                    continue
                except openai.APIStatusError as refusal:
                    if refusal.status_code != TOO_LARGE:
                        raise
        raise files.FilesError(too_large)
