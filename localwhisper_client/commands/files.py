"""Which recordings a command line means, where their transcripts go, and how one gets there whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUFFIX = {"text": ".txt", "json": ".json", "verbose_json": ".json", "srt": ".srt", "vtt": ".vtt"}
"""The ending of a transcript's file, by the format it is asked for."""

# What is taken for a recording in a folder. A file that is named is always taken.
RECORDINGS = frozenset(
    f".{ending}"
    for ending in (
        *("3gp", "aac", "aif", "aiff", "amr", "avi", "flac", "m4a", "m4b", "mka", "mkv", "mov", "mp2", "mp3", "mp4"),
        *("mpeg", "mpga", "oga", "ogg", "opus", "wav", "webm", "wma", "wmv"),
    )
)


class Unusable(Exception):
    """The files named cannot be what was meant; the message says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """A recording and the file its transcript goes to."""

    recording: Path
    transcript: Path


def plan(named: Sequence[str], format_: str, folder: Path | None) -> list[Job]:
    """Return what there is to do: files as named, recordings in folders (and theirs), globs that no shell expanded.

    A transcript goes beside its recording, or into `folder`, where those of a folder keep their place in it.

    Raises:
        Unusable: something named is not there, or two recordings would be written to one file.

    """
    jobs: dict[Path, Job] = {}
    for recording, inside in _recordings(named):
        beside = folder / inside if folder is not None else recording
        transcript = beside.with_name(beside.stem + SUFFIX[format_])
        other = jobs.setdefault(transcript, Job(recording, transcript))
        if other.recording != recording:
            raise Unusable(f"{other.recording} and {recording} would both be written to {transcript}")
    recordings = {job.recording.resolve() for job in jobs.values()}
    for job in jobs.values():
        if job.transcript.resolve() in recordings:
            raise Unusable(f"{job.recording} would be written over the recording {job.transcript}")
    return list(jobs.values())


def _recordings(named: Sequence[str]) -> Iterator[tuple[Path, Path]]:
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
            inside = sorted(each for each in match.rglob("*") if each.suffix.lower() in RECORDINGS and each.is_file())
            if not inside and len(matches) == 1:
                raise Unusable(f"there is no recording in {name}")
            for each in inside:
                yield each, each.relative_to(match)


def write(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a file that is there whole, and on the disk, or not there at all.

    Raises:
        FileExistsError: it is there already, and `replace` does not say to replace it.
        OSError: it cannot be written.

    """
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
    _sync_folder(path.parent)


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
    # A folder cannot be opened on Windows, where a rename needs no more.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
