"""What `localwhisper transcribe` says of many recordings, in a pipe and on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client.cli.files import Fate, Result
from localwhisper_client.cli.report import Report
from tests.client.fault_server import TEXT, error, says

if TYPE_CHECKING:
    from tests.client.fault_server import FaultServer

WORDS = says(200, b"text/plain", TEXT.encode(), b"x-localwhisper-queue-seconds: 0.000")
TRANSCRIBE = [sys.executable, "-u", "-m", "localwhisper_client", "transcribe"]


@pytest.fixture
def local_server(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FaultServer:
    """A LAN server that transcribes all recordings but those that are text; the working folder is empty."""

    def behave(conn: Any, request: Any) -> None:
        (error(400) if b"just text" in request.body else WORDS)(conn, request)

    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    monkeypatch.chdir(tmp_path)
    local_server.behaviour = behave
    return local_server


def record(count: int, content: bytes = b"sound", *, folder: str = "in", first: int = 0) -> None:
    """Make recordings."""
    Path(folder).mkdir(exist_ok=True)
    for number in range(first, first + count):
        Path(folder, f"{number:02d}.wav").write_bytes(content)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run([*TRANSCRIBE, *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_what_failed_is_named_again_at_the_end(local_server: FaultServer) -> None:
    """By reason, with a few names of each; the second run skips what is done in one line."""
    record(25)
    record(12, b"just text", first=30)
    Path("in/nowhere.wav").symlink_to("nothing")
    done = run("in", "--jobs", "16")
    assert done.returncode == 1
    assert done.stdout.count(" -> ") == 25
    report = done.stderr[done.stderr.rindex("\n\n") :]
    assert re.search(
        r"^12 failed: .*no 400.*\n(  in/3\d\.wav\n|  in/4\d\.wav\n){10}  and 2 more$", report, re.MULTILINE
    )
    assert "1 failed: No such file or directory\n  in/nowhere.wav\n" in report
    assert "The same command tries them again" in report
    assert re.search(r"^25 done, 13 failed in 0:00:\d\d$", report, re.MULTILINE)
    again = run("in", "--jobs", "16")
    assert again.stdout == "25 recordings: skipped, their transcripts exist already\n"
    assert "25 skipped, 13 failed" in again.stderr
    assert len(local_server.calls) == 25 + 12 + 12


def test_few_recordings_are_reported_once(local_server: FaultServer) -> None:
    """Nothing has scrolled away."""
    record(2)
    record(1, b"just text", first=5)
    done = run("in")
    assert done.stderr.count("in/05.wav") == 1
    assert done.stderr.splitlines()[-1].startswith("2 done, 1 failed in 0:00:0")


def test_a_terminal_sees_how_long_it_will_take(local_server: FaultServer) -> None:
    """The bar has the count, the failures and the time left. What is skipped is behind it from the start."""
    record(4, b"sound" * 3000)
    assert run("in").returncode == 0
    record(3, first=4)
    record(1, b"just text", first=7)
    Path("in/08.wav").write_bytes(b"sound" * 1000)
    gate, waits = threading.Event(), threading.Event()

    def behave(conn: Any, request: Any) -> None:
        if b"sound" * 1000 in request.body:
            waits.set()
            gate.wait(60)
        (error(400) if b"just text" in request.body else WORDS)(conn, request)

    local_server.behaviour = behave
    leader, follower = pty.openpty()
    seen = b""
    with subprocess.Popen(
        [*TRANSCRIBE, "in", "--jobs", "1"],
        stdin=follower, stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    ) as process:  # fmt: skip
        os.close(follower)
        while b"8/9, 1 failed" not in seen or b" left" not in seen.rpartition(b"8/9, 1 failed")[2]:
            seen += os.read(leader, 65536)
        assert waits.wait(60)
        gate.set()
        while b"failed in" not in seen:
            seen += os.read(leader, 65536)
        assert process.wait(60) == 1
    os.close(leader)
    assert re.search(rb"8/9, 1 failed.*\d:\d\d:\d\d left", seen)
    # A quarter of the bytes is left, then none: the colour of what is done comes first.
    bars = re.findall(rb"Transcribing \x1b\[\d+m((?:\xe2\x94\x81)+)(?:\xe2\x95\xb8)?\x1b.*?(\d)/9", seen)
    assert len(bars[0][0]) // 3 >= 12, bars[0]
    assert b"4 done, 4 skipped, 1 failed" in seen


def test_any_number_of_failures_is_a_short_report(capsys: pytest.CaptureFixture[str]) -> None:
    """Ten names of a reason, and twenty reasons."""
    report = Report(10_000, 0, 0, as_json=False)
    for number in range(10_000):
        report.add(Result(f"{number}.wav", Fate.FAILED, error=f"reason {number % 40}"))
    capsys.readouterr()
    report.explain_all()
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("  and 240 more") == 20
    assert "5000 failed for other reasons" in lines
    assert len(lines) == 1 + 20 * 12 + 3
    assert (report.exit_code(), report.summary()) == (1, "10000 failed")
