"""Which recordings a command line means, where their transcripts go, and when a recording may be deleted."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import signal
import stat
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localwhisper_client.shared.file_endings import ENDINGS

if sys.platform == "linux":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

SUFFIX = {"text": ".txt", "json": ".json", "verbose_json": ".json", "srt": ".srt", "vtt": ".vtt"}
"""The ending of a transcript's file, by the format it is asked for."""

# One of these is in every answer of localwhisper-server and of OpenAI; a page that says "It works!" has neither.
_PROOFS = ("x-localwhisper-queue-seconds", "openai-processing-ms")
_JSON_FORMATS = ("json", "verbose_json")


class Unusable(Exception):
    """The files named cannot be what was meant; the message says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """A recording and the file its transcript goes to."""

    recording: Path
    transcript: Path


@dataclass(slots=True)
class Plan:
    """What there is to do."""

    jobs: list[Job] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    """Files in the named folders that do not end like a recording."""
    unreadable: list[OSError] = field(default_factory=list)
    """What kept the inside of folders from being seen."""


def plan(named: Sequence[str], format_: str, folder: Path | None) -> Plan:
    """Return what there is to do: files as named, recordings in folders (and theirs), globs that no shell expanded.

    A transcript goes beside its recording, or into `folder`, where those of a folder keep their place in it. It is
    named after the recording without its ending, or with it where two recordings differ in nothing else.

    Raises:
        Unusable: something named is not there, or two recordings would be written to one file.

    """
    made = Plan()
    try:
        places = {
            recording: folder / inside if folder is not None else recording
            for recording, inside in _recordings(named, made)
        }
    except OSError as failure:
        raise Unusable(str(failure)) from failure
    suffix = SUFFIX[format_]
    transcripts = {recording: place.with_name(place.stem + suffix) for recording, place in places.items()}
    while shared := _shared(transcripts):
        full = {recording: places[recording].with_name(places[recording].name + suffix) for recording in shared}
        if all(transcripts[recording] == name for recording, name in full.items()):
            first, second = shared[:2]
            raise Unusable(f"{first} and {second} would both be written to {transcripts[first]}")
        transcripts |= full
    recordings = {recording.resolve() for recording in places}
    for recording, transcript in transcripts.items():
        if transcript.resolve() in recordings:
            raise Unusable(f"{recording} would be written over the recording {transcript}")
    made.jobs += [Job(*each) for each in transcripts.items()]
    return made


def _shared(transcripts: Mapping[Path, Path]) -> list[Path]:
    """Return the recordings whose transcripts would be one file, those of the same file beside each other."""
    taken: dict[Path, list[Path]] = {}
    for recording, transcript in transcripts.items():
        taken.setdefault(transcript, []).append(recording)
    return [recording for recordings in taken.values() if len(recordings) > 1 for recording in recordings]


def _recordings(named: Sequence[str], made: Plan) -> Iterator[tuple[Path, Path]]:
    """Yield each recording, and its path as it is kept inside another folder."""
    for name in named:
        path = Path(name)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207 - takes absolute patterns
        if not matches:
            raise Unusable(f"there is no {name}")
        for match in matches:
            if not match.is_dir():
                yield match, Path(match.name)
                continue
            inside = sorted(_files(match, made.unreadable.append))
            recordings = [each for each in inside if each.suffix[1:].lower() in ENDINGS]
            # Transcripts, and files that are hidden, are no recordings that were missed.
            made.left_out += [
                each
                for each in inside
                if each not in recordings and each.suffix not in SUFFIX.values() and not each.name.startswith(".")
            ]
            if not recordings and len(matches) == 1 and not made.unreadable:
                raise Unusable(f"there is no recording in {name}; a file that is named itself is always sent")
            for each in recordings:
                yield each, each.relative_to(match)


def _files(folder: Path, failed: Callable[[OSError], None]) -> Iterator[Path]:
    """Yield the files in a folder and in its folders; what cannot be looked at is told to `failed`."""
    for place, _, names in os.walk(folder, onerror=failed):
        for path in (Path(place, name) for name in names):
            try:
                if stat.S_ISREG(path.stat().st_mode):
                    yield path
            except OSError as failure:
                failed(failure)


def identity(file: os.stat_result) -> tuple[int, ...]:
    """Return what changes where a file is replaced, written to or grows."""
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns


def change(path: Path, handle: int, before: tuple[int, ...]) -> str:
    """Say how a file is not what was opened at `path` and had this identity, or return an empty string.

    A path at which nothing is any more has nothing to lose. Raises OSError.
    """
    if identity(os.fstat(handle)) != before:
        return "it changed while it was transcribed"
    with contextlib.suppress(FileNotFoundError):
        if identity(path.stat()) != before:
            return "another file took its place while it was transcribed"
    return "a program is still writing to it" if _is_written(handle) else ""


def _is_written(handle: int) -> bool:
    # Linux gives no read lease on a file that is open for writing. Other systems do not tell.
    if sys.platform == "linux":
        try:
            # A program that opens the file in this moment has us told of it by a signal, and SIGIO would end us.
            fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as failure:
            return failure.errno == errno.EAGAIN
    return False


def doubt(format_: str, headers: Mapping[str, str], body: bytes) -> str:
    """Say why an answer does not prove that a recording was transcribed, or return an empty string.

    JSON proves itself by its text. Any other format needs a header that speech-to-text servers send, and an announced
    length: an answer that ends with its connection may have been cut off.
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
    """Whether a transcript has anything in it that was said."""
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


def write(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a file that is there whole, and on the disk, or not there at all.

    Raises:
        FileExistsError: it is there already, and `replace` does not say to replace it.
        OSError: it cannot be written.

    """
    # A new folder is only on the disk once the one around it is, too.
    folders = {path.parent, *(folder.parent for folder in path.parents if not folder.exists())}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".localwhisper-")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
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
        # The one step that both creates a name and fails where there is one.
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links (FAT): somebody else's file may come between these two.
        if path.exists():
            raise FileExistsError(f"{path} is there already") from None
        part.rename(path)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # as on Windows, where a rename needs no more
        return
    try:
        os.fsync(handle)
    except OSError as failure:
        if failure.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot do this for folders
            raise
    finally:
        os.close(handle)
