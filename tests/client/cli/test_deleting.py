"""When a recording may be deleted, by the command and by the skill's script: each kind of answer and of change.

A recording is deleted if it is still what was sent, and the answer is surely a whole transcript with words in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from localwhisper_client.cli import files
from localwhisper_client.cli.app import app
from tests.client.cli.test_skill import run as run_skill
from tests.client.fault_server import error, reset, says

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from tests.client.fault_server import FaultServer

    Meanwhile = Callable[[Path], object]

SOUND = b"OggS and what follows"
PROOF = b"x-localwhisper-queue-seconds: 0.000"
PLAIN = b"text/plain; charset=utf-8"
JSON = b"application/json"
VERBOSE = b'{"task":"transcribe","text":"buy \\"milk\\" {","words":[{"word":"buy"}],"usage":{"seconds":1}}'


def raw(*lines: bytes, body: bytes, broken: bool = False) -> Any:
    """Answer with these bytes and close the connection; `broken`: by a reset."""

    def behave(conn: socket.socket, _: Any) -> None:
        conn.sendall(b"\r\n".join([b"HTTP/1.1 200 OK", b"content-type: text/plain", *lines]) + b"\r\n\r\n" + body)
        if broken:
            reset(conn)
        else:
            conn.close()

    return behave


WORDS = says(200, PLAIN, b"buy milk\n", PROOF)


def take_away(recording: Path) -> None:
    """Move it to another name."""
    recording.rename(recording.with_name(".moved"))


def grow(recording: Path) -> None:
    """Append to it."""
    with recording.open("ab") as file:
        file.write(b"more")


def rewrite(recording: Path) -> None:
    """Write other bytes into the same file, as many as before."""
    recording.write_bytes(SOUND[::-1])
    os.utime(recording, ns=(1, 1))


def replace(recording: Path) -> None:
    """Put another recording in its place, of the same size and time."""
    before = recording.stat()
    other = recording.with_name("other.ogg")
    other.write_bytes(SOUND)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(recording)


@dataclass(frozen=True)
class Case:
    """What happens, and what must come of it: the recording deleted, a transcript written."""

    answer: Any = WORDS
    format: str = "text"
    meanwhile: Meanwhile | None = None
    deleted: bool = False
    written: bool = False
    arguments: tuple[str, ...] = ()


def text(body: bytes, *headers: bytes, **expected: Any) -> Case:
    """Answer in plain text."""
    return Case(says(200, PLAIN, body, *headers), **expected)


def in_json(body: bytes, *headers: bytes, **expected: Any) -> Case:
    """Answer a call for JSON."""
    return Case(says(200, JSON, body, *headers), "json", **expected)


DONE = {"deleted": True, "written": True}
MILK, CHUNKED = b'{"text": "buy milk"}', b"transfer-encoding: chunked"
CASES = {
    # Answers after which the recording is deleted.
    "our text": Case(**DONE),
    "json": in_json(MILK, **DONE),
    "a rich json": in_json(VERBOSE, **DONE),
    "in chunks": Case(raw(PROOF, CHUNKED, body=b"4\r\nmilk\r\n0\r\n\r\n"), **DONE),
    # No answer.
    "an error": Case(error(500)),
    "a reset": Case(lambda conn, _: reset(conn)),
    "an empty text": text(b""),
    "an empty text of ours": text(b"", PROOF),
    "an empty json": in_json(b""),
    # Answers of other programs.
    "it works": text(b"It works!"),
    "a page": Case(says(200, b"text/html", b"<h1>It works!</h1>")),
    "a page of XML": Case(says(200, b"text/xml", b"<router/>")),
    "another json": in_json(b'{"status": "ok"}'),
    "an error in json": in_json(b'{"error": {"text": "no"}, "text": "x"}'),
    "text for json": text(b"It works!", PROOF, format="json"),
    # Answers that are cut off.
    "a cut text": Case(raw(PROOF, b"content-length: 99", body=b"buy", broken=True)),
    "a text of unknown length": Case(raw(PROOF, body=b"buy")),
    "a cut chunk": Case(raw(PROOF, CHUNKED, body=b"9\r\nbuy m", broken=True)),
    "a cut json": in_json(b'{"text":"buy } mi', PROOF),
    "a json cut at a brace": in_json(b'{"text":"buy","usage":{"seconds":1}', PROOF),
    # Answers without words.
    "silence": text(b"\n", PROOF, written=True),
    "silence in json": in_json(b'{"text": " ", "usage": {}}', written=True),
    # Recordings that changed meanwhile.
    "growing": Case(meanwhile=grow),
    "recorded anew": Case(meanwhile=rewrite),
    "replaced": Case(meanwhile=replace),
    "growing, json": in_json(MILK, meanwhile=grow),
    "moved away": Case(meanwhile=take_away, **DONE),
    # A transcript that cannot be written.
    "no place for the transcript": Case(arguments=("--out", "voice.ogg/x")),
}


def by_command(recording: Path, case: Case, local_server: FaultServer) -> int:
    """Run `localwhisper transcribe`."""
    arguments = ["transcribe", recording.name, "--delete-after", "--format", case.format, *case.arguments]
    with contextlib.chdir(recording.parent):
        return CliRunner(env={"LOCALWHISPER_BASE_URL": local_server.url}).invoke(app, arguments).exit_code


def by_skill(recording: Path, case: Case, local_server: FaultServer) -> int:
    """Run the skill's script."""
    flags = ["--json"] if case.format == "json" else []
    done = run_skill(
        recording.name, "--delete-input", *flags, *case.arguments, url=local_server.url, cwd=recording.parent
    )
    return int(done.returncode)


HAS_CURL = shutil.which("bash") and shutil.which("curl")
WAYS = [
    pytest.param(by_command, id="command"),
    pytest.param(by_skill, id="skill", marks=pytest.mark.skipif(not HAS_CURL, reason="needs bash and curl")),
]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("way", WAYS)
def test_no_recording_is_lost(way: Any, case: Case, local_server: FaultServer, tmp_path: Path) -> None:
    """Only the recording that was sent is deleted, and only after a proven answer; a failure writes no transcript."""
    recording = tmp_path / "voice.ogg"
    recording.write_bytes(SOUND)

    def behave(conn: socket.socket, request: Any) -> None:
        if case.meanwhile:
            case.meanwhile(recording)
        case.answer(conn, request)

    local_server.behaviour = behave
    code = way(recording, case, local_server)
    written = [path.name for path in tmp_path.iterdir() if path.name not in ("voice.ogg", ".moved")]
    assert recording.exists() is not case.deleted
    assert written == (["voice.txt" if case.format == "text" else "voice.json"] if case.written else [])
    assert (code == 0) is case.written


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows this")
@pytest.mark.parametrize("way", WAYS)
def test_a_recording_that_is_open_for_writing_stays(way: Any, local_server: FaultServer, tmp_path: Path) -> None:
    """A recorder that writes every few seconds may not have written while the server worked."""
    recording = tmp_path / "voice.ogg"
    with recording.open("wb") as recorder:
        recorder.write(SOUND)
        recorder.flush()
        local_server.behaviour = WORDS
        assert way(recording, Case(), local_server) == 1
    assert recording.read_bytes() == SOUND
    assert way(recording, Case(), local_server) == 0
    assert not recording.exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_link_is_deleted_and_its_target_is_not(way: Any, local_server: FaultServer, tmp_path: Path) -> None:
    """The recording stays under its own name; another program that reads it is no reason to keep the link."""
    (tmp_path / "kept").mkdir()
    recording, link = tmp_path / "kept" / "a.ogg", tmp_path / "voice.ogg"
    recording.write_bytes(SOUND)
    link.symlink_to(recording)
    local_server.behaviour = WORDS
    with recording.open("rb"):
        assert way(link, Case(), local_server) == 0
    assert recording.read_bytes() == SOUND
    assert not link.is_symlink()


def test_a_transcript_that_is_not_on_the_disk_deletes_nothing(
    tmp_path: Path, local_server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the folder's entry cannot be synced, the recording stays."""
    recording = tmp_path / "voice.ogg"
    recording.write_bytes(SOUND)
    local_server.behaviour = WORDS
    synced: list[int] = []
    sync = os.fsync

    def fail_at_folders(handle: int) -> None:
        synced.append(handle)
        if len(synced) > 1:
            raise OSError(5, "Input/output error")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail_at_folders)
    assert by_command(recording, Case(), local_server) == 1
    assert recording.exists()
    assert len(synced) == 2


def test_a_transcript_without_words() -> None:
    """In each format, as localwhisper-server answers silence."""
    silent = {"text": b"\n", "srt": b"\n", "vtt": b"WEBVTT\n\n", "json": b'{"text":""}', "verbose_json": b'{"text":""}'}
    assert not any(files.has_words(format_, body) for format_, body in silent.items())
    assert files.has_words("vtt", b"WEBVTT\n\n00:00.000 --> 00:01.000\nmilk\n\n")
