"""The log's streams: nobody waits for them, and a file of theirs never grows without end."""

from __future__ import annotations

import errno
import io
import json
import threading
from typing import TYPE_CHECKING

import pytest

from localwhisper_server.operations import logs, logstream

if TYPE_CHECKING:
    from pathlib import Path


class _Stuck(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def write(self, text: str, /) -> int:
        assert self.gate.wait(10)
        return super().write(text)


def test_a_log_that_nobody_reads_blocks_nobody() -> None:
    """Lines beyond what may wait are dropped, and counted when there is somebody again."""
    stuck = _Stuck()
    log = logstream.NonBlockingStream(stuck, lines=3)
    for number in range(100):
        assert log.write(f"{number}\n") > 0
    assert log.writable()
    assert not log.finish(0.05)
    stuck.gate.set()
    log.write("again\n")
    assert log.finish(10)
    written = stuck.getvalue()
    assert written.startswith("0\n") or "0\n" in written
    assert "lines of the log were dropped" in written


def test_a_full_disk_under_the_log_harms_nobody() -> None:
    """Nothing is raised, and the next line is tried again."""
    tried = []

    class Full(io.StringIO):
        def write(self, text: str, /) -> int:
            tried.append(text)
            raise OSError(errno.ENOSPC, "No space left on device")

    log = logstream.NonBlockingStream(Full())
    log.write("lost\n")
    log.write("lost as well\n")
    assert log.finish(10)
    assert tried == ["lost\n", "lost as well\n"]


def test_a_file_is_begun_anew_when_it_is_full(tmp_path: Path) -> None:
    """So many earlier ones stay, the oldest goes, and no line is cut in two."""
    path = tmp_path / "server.log"
    file = logstream.RotatingFile(path, "", size=100, kept=2)
    assert file.writable()
    for number in range(40):
        file.write(f"line number {number:02}\n")
    file.close()
    assert sorted(each.name for each in path.parent.iterdir()) == ["server.log", "server.log.1", "server.log.2"]
    found = [line for each in (2, 1) for line in path.with_name(f"server.log.{each}").read_text().splitlines()]
    found += path.read_text().splitlines()
    assert found == [f"line number {number:02}" for number in range(40 - len(found), 40)]
    assert all(each.stat().st_size <= 100 for each in path.parent.iterdir())


def test_a_file_goes_on_where_it_was(tmp_path: Path) -> None:
    """A restart appends."""
    path = tmp_path / "server.log"
    for said in ("before\n", "after\n"):
        file = logstream.RotatingFile(path, "start\n")
        file.write(said)
        file.close()
    assert path.read_text().split() == ["start", "before", "start", "after"]


def test_a_log_of_objects_begins_with_one() -> None:
    """A start is marked in the format of the log: a program reads every line of it."""
    assert set(logs.opening_line("text").strip()) == {"-"}
    line = logs.opening_line("json")
    assert line.count("\n") == 1
    assert json.loads(line).keys() == {"time", "level", "logger", "request_id", "message"}


def test_a_file_that_was_taken_away_is_made_anew(tmp_path: Path) -> None:
    """By somebody who rotates all logs of a machine, say; the next line is in a new one."""
    path = tmp_path / "server.log"
    file = logstream.RotatingFile(path, "")
    path.rename(tmp_path / "moved.log")
    file.write("after\n")
    file.close()
    assert path.read_text() == "after\n"


def test_ten_megabytes_and_five_more() -> None:
    """The figures in --help."""
    assert (logstream.FILE_BYTES, logstream.FILES) == (10_000_000, 5)


def test_a_file_without_room_is_known_at_once() -> None:
    """/dev/full opens as any file does; the first byte does not fit."""
    from pathlib import Path

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(OSError, match="No space left"):
        logstream.RotatingFile(Path("/dev/full"), "start\n")
