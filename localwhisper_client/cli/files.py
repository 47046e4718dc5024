"""The files of `localwhisper transcribe`: which recordings are meant, where transcripts go, and what may be deleted."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from localwhisper_client.shared.file_endings import ENDINGS

if sys.platform == "linux":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SUFFIX = {"text": ".txt", "json": ".json", "verbose_json": ".json", "srt": ".srt", "vtt": ".vtt"}
"""The ending of a transcript's file, by its format."""

# Each answer of localwhisper-server or of OpenAI has one of these; a router's page that says "It works!" has none.
_PROOFS = ("x-localwhisper-queue-seconds", "openai-processing-ms")
_JSON_FORMATS = ("json", "verbose_json")


class FilesError(Exception):
    """The command cannot do what it should with these files; the message says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """A recording and the file its transcript goes to."""

    recording: Path
    transcript: Path

    def size(self) -> int:
        """Return the recording's size in bytes; 0 if it cannot be read."""
        try:
            return self.recording.stat().st_size
        except OSError:
            return 0


class Fate(StrEnum):
    """What became of a recording."""

    DONE = "done"
    SKIPPED = "skipped"
    """Its transcript existed already."""
    LEFT_OUT = "left out"
    """It is in a named folder, and its name does not end like a recording's."""
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    """No server could be reached; a later try may succeed."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report; with --json, one object."""

    file: str
    fate: Fate
    output: str = ""
    seconds: float = 0.0
    error: str = ""
    deleted: bool = False
    kept: str = ""
    """Why --delete-after did not delete a recording that has its transcript."""


def plan(named: Sequence[str], format_: str, folder: Path | None) -> tuple[list[Job], list[Result]]:
    """Return the recordings that are meant with their transcripts, and the files and folders that are not transcribed.

    `named` has files, folders (for the recordings in them, at any depth), and patterns that no shell expanded. A
    transcript goes beside its recording, or into `folder`, with the same sub-folders. Its name is the recording's
    without the ending; if two recordings differ in nothing but that, the ending is kept.

    Raises:
        FilesError: something named does not exist, or two recordings would be written to one file.

    """
    others: list[Result] = []
    try:
        places = {
            recording: folder / inside if folder is not None else recording
            for recording, inside in _recordings(named, others)
        }
    except OSError as failure:
        raise FilesError(str(failure)) from failure
    suffix = SUFFIX[format_]
    full: set[Path] = set()  # the recordings whose transcripts keep the ending
    while True:
        transcripts = {
            recording: place.with_name((place.name if recording in full else place.stem) + suffix)
            for recording, place in places.items()
        }
        times = Counter(transcripts.values())
        shared = {recording for recording, transcript in transcripts.items() if times[transcript] > 1}
        if not shared:
            break
        if shared <= full:
            clash = next(transcript for transcript, count in times.items() if count > 1)
            first, second, *_ = (str(recording) for recording, transcript in transcripts.items() if transcript == clash)
            raise FilesError(f"{first} and {second} would both be written to {clash}")
        full |= shared
    recordings = set(map(os.path.realpath, places))
    for recording, transcript in transcripts.items():
        if os.path.realpath(transcript) in recordings:
            raise FilesError(f"{recording} would be written over the recording {transcript}")
    return [Job(*each) for each in transcripts.items()], others


def _recordings(named: Sequence[str], others: list[Result]) -> Iterator[tuple[Path, Path]]:
    """Yield each recording, and its path relative to the folder that was named."""
    for name in named:
        path = Path(name)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207 - takes absolute patterns
        if not matches:
            raise FilesError(f"there is no {name}")
        for match in matches:
            if not match.is_dir():
                yield match, Path(match.name)
                continue
            unreadable: list[OSError] = []
            inside = sorted(
                path
                for place, _, names in os.walk(match, onerror=unreadable.append)
                for path in (Path(place, name) for name in names)
                # A link to nowhere fails when it is opened. A pipe or a device is not opened.
                if os.path.isfile(path) or not os.path.exists(path)  # noqa: PTH110, PTH113 - these raise nothing
            )
            recordings = [each for each in inside if _is_recording(each)]
            if not recordings and len(matches) == 1 and not unreadable:
                raise FilesError(f"there is no recording in {name}; a file that is named itself is always sent")
            others += [Result(str(failure.filename), Fate.FAILED, error=str(failure)) for failure in unreadable]
            # Transcripts and hidden files are not reported: they were not meant.
            others += [
                Result(str(each), Fate.LEFT_OUT)
                for each in inside
                if not _is_recording(each) and each.suffix not in SUFFIX.values() and not each.name.startswith(".")
            ]
            for each in recordings:
                yield each, each.relative_to(match)


def _is_recording(path: Path) -> bool:
    return path.suffix[1:].lower() in ENDINGS


def change(path: Path, file: IO[bytes], before: os.stat_result) -> str:
    """Say how an open file, or the one at its path, differs from what it was; empty if neither does.

    If nothing is at the path any more, nothing can be lost there.

    Raises:
        OSError: the file's state cannot be read.

    """
    if _identity(os.fstat(file.fileno())) != _identity(before):
        return "it changed while it was transcribed"
    with contextlib.suppress(FileNotFoundError):
        if _identity(path.stat()) != _identity(before):
            return "another file took its place while it was transcribed"
    return "a program is still writing to it" if _is_written(file.fileno()) else ""


def _identity(file: os.stat_result) -> tuple[int, ...]:
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns


def _is_written(handle: int) -> bool:
    # Linux refuses a read lease on a file that is open for writing. Other systems have no such check.
    if sys.platform == "linux":
        try:
            # If a program opens the file during the lease, we get a signal. The default one, SIGIO, would end us.
            fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as failure:
            return failure.errno == errno.EAGAIN
    return False


def missing_proof(format_: str, headers: Mapping[str, str], body: bytes) -> str:
    """Say what an answer lacks to prove that a recording was transcribed; empty if it lacks nothing.

    In JSON its text is the proof. Any other format needs a header that speech-to-text servers send, and a length: an
    answer that ends when the connection closes may be cut off.
    """
    if not body:
        return "the answer is empty"
    if format_ in _JSON_FORMATS:
        return "" if _text(body) is not None else "the answer is no whole JSON with a text"
    if not any(name in headers for name in _PROOFS):
        return "nothing in the answer shows that a speech-to-text server gave it; --format json would"
    if "content-length" not in headers and "transfer-encoding" not in headers:
        return "the answer does not say how long it is, and may be cut off; --format json would show it"
    return ""


def has_words(format_: str, body: bytes) -> bool:
    """Whether a transcript has any words."""
    if format_ in _JSON_FORMATS:
        return bool((_text(body) or "").strip())
    return bool(body.removeprefix(b"\xef\xbb\xbf").removeprefix(b"WEBVTT").strip())


def _text(body: bytes) -> str | None:
    try:
        answer: Any = json.loads(body)
    except ValueError:
        return None
    text = answer.get("text") if isinstance(answer, dict) and not answer.get("error") else None
    return text if isinstance(text, str) else None


def write(path: Path, content: bytes, *, replace: bool, mode: int = 0o666) -> None:
    """Write a file and its folders to the disk, the whole of it or nothing. `mode` is reduced by the umask.

    Raises:
        FileExistsError: it exists, and `replace` is false.
        OSError: it cannot be written.

    """
    # A new folder is on the disk only when its parent folder is synced, too.
    folders = {path.parent, *(folder.parent for folder in path.parents if not folder.exists())}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".localwhisper-{secrets.token_hex(8)}")
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            part.replace(path)
        else:
            _move_if_free(part, path)
    finally:
        part.unlink(missing_ok=True)
    for folder in folders:
        _sync_folder(folder)


def _move_if_free(part: Path, path: Path) -> None:
    try:
        # This creates the name, or fails if it exists, in one step.
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links (FAT): another program's file may come between these two steps.
        if path.exists():
            raise FileExistsError(f"{path} is there already") from None
        part.rename(path)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, where a rename needs no sync
        return
    try:
        os.fsync(handle)
    except OSError as failure:
        if failure.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system cannot sync folders
            raise
    finally:
        os.close(handle)
