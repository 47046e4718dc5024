"""The command line, as a script and as a person sees it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from localwhisper_client.cli import files, status
from localwhisper_client.cli.app import SKILL, app
from localwhisper_client.cloud.ledger import Ledger, Row
from localwhisper_client.lan.discovery import Found
from localwhisper_client.routing.policy import Policy
from tests.client.fault_server import TEXT, error, in_turn, refusing, says

if TYPE_CHECKING:
    from tests.client.fault_server import FaultServer

WORDS = says(200, b"text/plain", TEXT.encode(), b"x-localwhisper-queue-seconds: 0.000")
TRANSCRIBE = [sys.executable, "-u", "-m", "localwhisper_client", "transcribe"]
HEALTH = {"status": "ok", "ready": True, "model": "base", "device": "cpu", "requests": 2, "queue_seconds": 1.5}


@pytest.fixture
def local_server(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    """A LAN server that the environment names, and that answers with words."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    local_server.behaviour = WORDS
    return local_server


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: object) -> Any:
    """Run the command in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def record(*names: str) -> None:
    """Make recordings."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"sound of " + name.encode())


def names(folder: Path) -> list[str]:
    """Return all files in a folder, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("format_", "suffix", "body"),
    [
        ("text", "txt", b"words"),
        ("srt", "srt", b"\n"),
        ("vtt", "vtt", b"WEBVTT\n\n"),
        ("json", "json", b'{"text": "x"}'),
        ("verbose_json", "json", b'{"text": "x"}'),
    ],
)
def test_a_recording_becomes_a_file_beside_it(
    format_: str, suffix: str, body: bytes, here: Path, local_server: FaultServer
) -> None:
    """The server's bytes are written as they are, every option is sent, and one line is printed."""
    local_server.behaviour = says(200, b"application/json" if "json" in format_ else b"text/plain", body)
    record("a.ogg")
    done = command("transcribe", "a.ogg", "-f", format_, "--language", "de", "--prompt", "Peter", "--model", "m")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"a.ogg -> a.{suffix} (")
    assert Path(f"a.{suffix}").read_bytes() == body
    assert names(here) == sorted(["a.ogg", f"a.{suffix}"])
    for value in (format_, "de", "Peter", "m"):
        assert f"\r\n\r\n{value}\r\n".encode() in local_server.calls[0].body


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (["-f", "srt"], {"max_line_width": "42", "max_line_count": "2"}),
        (["-f", "vtt", "--max-line-width", "30", "--max-line-count", "1", "--max-words-per-line", "4"],
         {"max_line_width": "30", "max_line_count": "1", "max_words_per_line": "4"}),
        (["-f", "srt", "--max-line-width", "0"], {}),
        (["-f", "json"], {}),
    ],
)  # fmt: skip
def test_subtitles_fit_the_screen(
    options: list[str], sent: dict[str, str], here: Path, local_server: FaultServer
) -> None:
    """People play what it writes, so it asks for two lines of 42 columns unless told otherwise."""
    record("a.ogg")
    command("transcribe", "a.ogg", *options)
    (call,) = local_server.calls
    found = dict(re.findall(r'name="(max_\w+)"\r\n\r\n(\w+)', call.body.decode(errors="replace")))
    assert found == sent


def test_folders_patterns_and_out(here: Path, local_server: FaultServer) -> None:
    """Sub-folders are kept, other files are left out, and a pattern works without a shell."""
    record("in/a.ogg", "in/deep/a.MP3", "in/notes.txt", "b1.wav", "b2.wav")
    assert command("transcribe", "in", "b*.wav", "--out", "out", "--jobs", "3").exit_code == 0
    assert names(here / "out") == ["a.txt", "b1.txt", "b2.txt", "deep/a.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.ogg"], "there is no nowhere.ogg"),
        (["*.nothing"], "there is no *.nothing"),
        (["empty"], "no recording in empty"),
        (["a.ogg", "deep/a.ogg", "--out", "out"], "both be written to out/a.ogg.txt"),
        (["a.txt"], "over the recording"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, here: Path, local_server: FaultServer) -> None:
    """Exit code 2, and nothing is sent."""
    record("a.ogg", "deep/a.ogg", "a.txt")
    Path("empty").mkdir()
    done = command("transcribe", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not local_server.calls


def test_two_recordings_of_one_name_get_a_transcript_each(here: Path, local_server: FaultServer) -> None:
    """Their transcripts keep the recording's ending, in any order; other transcripts do not."""
    record("in/a.ogg", "in/a.mp3", "in/a.ogg.wav", "in/b.ogg")
    assert command("transcribe", "in").exit_code == 0
    made = [name for name in names(here / "in") if name.endswith(".txt")]
    assert made == ["a.mp3.txt", "a.ogg.txt", "a.ogg.wav.txt", "b.txt"]
    assert len(local_server.calls) == 4
    assert "4 skipped" in command("transcribe", "in").stderr


def test_what_is_left_out_of_a_folder_is_named(here: Path, local_server: FaultServer) -> None:
    """Files that do not end like recordings are listed; transcripts and hidden files are not."""
    record("in/a.ogg", "in/b.vob", "in/c.opus", "in/talk.dat", "in/deep/no ending", "in/.cover.jpg", "in/old.srt")
    done = command("transcribe", "in")
    assert done.exit_code == 0
    assert len(local_server.calls) == 3
    left = [line.partition(": left out, since")[0] for line in done.stderr.splitlines() if "does not end" in line]
    assert left == ["in/deep/no ending", "in/talk.dat"]
    lines = [json.loads(line) for line in command("transcribe", "in", "--json").stdout.splitlines()]
    assert [line["file"] for line in lines if line["fate"] == "left out"] == ["in/deep/no ending", "in/talk.dat"]


def test_a_folder_that_cannot_be_read_fails_alone(here: Path, local_server: FaultServer) -> None:
    """It is reported, the exit code is 1, and the other recordings are done."""
    record("in/a.ogg", "in/locked/b.ogg")
    Path("in/loop.ogg").symlink_to("loop.ogg")
    done = command("transcribe", "in")
    assert done.exit_code == 1
    assert "loop.ogg" in done.stderr
    assert {"a.txt", "locked/b.txt"} < {*names(here / "in")}


def test_any_name_that_a_file_can_have(here: Path, local_server: FaultServer) -> None:
    """Bytes that are no UTF-8, letters that the terminal lacks, markup: all are transcribed."""
    odd = [b"\xff\xfe.ogg", "\U0001f3e0.ogg".encode(), b"[red] [b.ogg", b"line\nbreak.ogg", b"a.ogg"]
    for name in odd:
        Path(os.fsdecode(name)).write_bytes(b"sound")
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*TRANSCRIBE, "."], env=environ, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(path.suffix == ".txt" for path in here.iterdir()) == done.stdout.count(b" -> ") == len(odd)
    reported = subprocess.run([*TRANSCRIBE, ".", "--json"], env=environ, capture_output=True, check=True).stdout
    assert {os.fsencode(json.loads(each)["file"]) for each in reported.splitlines()} == set(odd)


def test_a_failure_stops_no_other_file(here: Path, local_server: FaultServer) -> None:
    """A name that is too long for the file system and a link to nowhere fail; the third recording is done."""
    long = "x" * 253 + ".a"
    record("a.ogg", long)
    Path("c.ogg").symlink_to("nowhere")
    local_server.behaviour = says(200, b"application/json", b'{"text":"x"}')
    done = command("transcribe", long, "c.ogg*", "a.ogg", "--format", "json", "--jobs", "1")
    assert (done.exit_code, Path("a.json").exists()) == (1, True)
    assert "too long" in done.stderr
    assert "1 done, 2 failed" in done.stderr


def test_a_closed_pipe_ends_the_run_with_a_line(here: Path, local_server: FaultServer) -> None:
    """As with a pipe into `head`: an error message and no traceback."""
    record(*(f"{number}.ogg" for number in range(6)))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([*TRANSCRIBE, "."], stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Broken pipe" in done.stderr


def test_nothing_is_overwritten_unless_forced(here: Path, local_server: FaultServer) -> None:
    """If a transcript exists, its recording is neither sent nor deleted."""
    record("a.ogg")
    Path("a.txt").write_text("mine")
    done = command("transcribe", "a.ogg", "--delete-after")
    assert (done.exit_code, Path("a.txt").read_text(), len(local_server.calls)) == (0, "mine", 0)
    assert "skipped" in done.stdout
    assert command("transcribe", "a.ogg", "--force").exit_code == 0
    assert (Path("a.txt").read_text(), names(here)) == (TEXT, ["a.ogg", "a.txt"])


def test_a_transcript_that_another_program_wrote_meanwhile_stays(here: Path, local_server: FaultServer) -> None:
    """It came while the server worked; the recording counts as skipped."""

    def slow(conn: Any, request: Any) -> None:
        Path("a.txt").write_text("theirs")
        WORDS(conn, request)

    local_server.behaviour = slow
    record("a.ogg")
    assert "skipped" in command("transcribe", "a.ogg", "--delete-after").stdout
    assert Path("a.txt").read_text() == "theirs"
    assert names(here) == ["a.ogg", "a.txt"]


def test_exit_codes_and_json(here: Path, local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """1: some failed; 2: a wrong setting; 3: no server; with --json an object for each recording."""
    record("a.ogg", "b.ogg")
    local_server.behaviour = in_turn(error(400), then=WORDS)
    done = command("transcribe", "a.ogg", "b.ogg", "--json", "--jobs", "1", "--delete-after")
    first, second = map(json.loads, done.stdout.splitlines())
    assert done.exit_code == 1
    assert (first["file"], first["fate"], second["fate"], second["output"]) == ("a.ogg", "failed", "done", "b.txt")
    assert "no 400" in first["error"]
    assert names(here) == ["a.ogg", "b.txt"]
    with refusing() as port:
        monkeypatch.setenv("LOCALWHISPER_BASE_URL", f"http://127.0.0.1:{port}/v1")
        done = command("transcribe", "a.ogg")
    assert done.exit_code == 3
    assert "Start the server" in done.stderr
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", "nonsense")
    assert command("transcribe", "a.ogg").exit_code == 2


def test_ctrl_c_stops_at_once_and_leaves_no_half_file(here: Path, local_server: FaultServer) -> None:
    """Exit code 130, though the server has not answered; finished transcripts stay."""
    waiting, gone = threading.Event(), threading.Event()

    def silent(_: Any, __: Any) -> None:
        waiting.set()
        gone.wait(30)

    local_server.behaviour = in_turn(WORDS, then=silent)
    record("a.ogg", "b.ogg")
    process = subprocess.Popen(
        [*TRANSCRIBE, "a.ogg", "b.ogg", "--jobs", "1", "--delete-after"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert waiting.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        gone.set()
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "interrupted; 1 done" in err
    assert "Traceback" not in err
    assert out.startswith("a.ogg -> a.txt")
    assert names(here) == ["a.txt", "b.ogg"]


def test_a_terminal_sees_a_bar(here: Path, local_server: FaultServer) -> None:
    """And the same lines as a pipe."""
    record("a.ogg", "b.ogg")
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*TRANSCRIBE, "a.ogg", "b.ogg"],
        stdin=follower, stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    ) as process:  # fmt: skip
        os.close(follower)
        seen = b""
        while chunk := _read(leader):
            seen += chunk
        assert process.wait(60) == 0
    os.close(leader)
    assert b"Transcribing" in seen
    assert b"a.ogg -> a.txt" in seen
    assert b"2 done" in seen


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # on Linux: the other end is closed
        return b""


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is written all the same, and overwrites nothing."""
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links")))
    files.write(tmp_path / "a", b"1", replace=False)
    with pytest.raises(FileExistsError):
        files.write(tmp_path / "a", b"2", replace=False)
    assert (tmp_path / "a").read_bytes() == b"1"
    assert names(tmp_path) == ["a"]


def as_json(value: Any, status: int = 200) -> Any:
    """Answer with JSON."""
    return says(status, b"application/json", json.dumps(value).encode())


NO_MODELS = as_json({"data": []})


def answering(health: Any, models: Any = NO_MODELS, ready: Any = NO_MODELS) -> Any:
    """Answer as a server's /health, /v1/models and /ready."""
    by_path = {"/health": health, "/ready": ready}
    return lambda conn, request: by_path.get(request.path, models)(conn, request)


STUCK = as_json({"ready": False, "reason": "The last inference failed."}, 503)


@pytest.mark.parametrize(
    ("answers", "state", "code"),
    [
        (answering(as_json(HEALTH)), "ready", 0),
        (answering(as_json(HEALTH | {"status": "loading", "ready": False})), "loading", 1),
        (answering(as_json(HEALTH | {"status": "failed", "ready": False})), "failed", 1),
        (answering(as_json(HEALTH), as_json({}, 401)), "wrong key", 1),
        (answering(as_json({}, 404)), "ready", 0),
        (says(200, b"text/html", b"<h1>"), "wrong server", 1),
        # `/health` says "ok" of a server that is stuck; `/ready` knows, and says why.
        (answering(as_json(HEALTH), ready=STUCK), "not ready", 1),
    ],
)
def test_status(answers: Any, state: str, code: int, local_server: FaultServer) -> None:
    """The state of each kind of answer, and an exit code for a script."""
    local_server.answers_probe = answers
    done = command("status", "--json")
    (server,) = json.loads(done.stdout)["servers"]
    assert (done.exit_code, server["state"]) == (code, state)
    shown = command("status").stdout
    assert state in shown
    assert ("The last inference failed." in shown) is (state == "not ready")


def test_status_of_servers_that_are_up_and_down(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is ready is enough. The key is sent to /models alone; the table shows the queue and the policy."""
    local_server.answers_probe = answering(as_json(HEALTH))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LOCALWHISPER_API_KEY", "ours")
    with refusing() as port:
        monkeypatch.setenv("LOCALWHISPER_BASE_URL", f"{local_server.url},http://me:secret@127.0.0.1:{port}/v1")
        done = command("status")
    assert done.exit_code == 0
    for word in ("base", "2 calls, 1.5 s", "down", "nothing leaves the LAN", "closed", "opens", "do not call a server"):
        assert word in done.stdout
    assert "secret" not in done.stdout
    assert [probe.headers.get("authorization") for probe in local_server.probes] == [None, "Bearer ours", None]
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", "nonsense")
    assert command("status").exit_code == 2


def row(at: float, cost: float = 0.0, *, audio: float | None, saved: float | None = 0.0) -> Row:
    """Return a row of the ledger, in the cloud if it costs something."""
    return Row(at, "x", bool(cost), "", audio, 1.0, cost, saved)


def test_stats(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes by day, money spent and saved, and how many calls have an unknown amount."""
    monkeypatch.setenv("LOCALWHISPER_LEDGER", "calls.sqlite3")
    assert command("stats").exit_code == 1
    now = time.time()
    with closing(Ledger(Path("calls.sqlite3"))) as ledger:
        ledger.record(row(now, audio=600.0, saved=0.06))
        ledger.record(row(now, 0.006, audio=60.0))
        ledger.record(row(now, audio=None, saved=None))
        ledger.record(row(now - 90 * 86400, 9.0, audio=6000.0))
    said = command("stats").stdout
    for words in ("11.0 min", "3 calls", "Spent $0.01, saved $0.06", "unknown length or cost: 1.", "█", "▒"):
        assert words in said
    (day,) = json.loads(command("stats", "--json").stdout)
    assert (day["lan_seconds"], day["cloud_seconds"]) == (600, 60)
    Path("calls.sqlite3").write_text("something else" * 100)
    assert command("stats").exit_code == 1


@pytest.mark.parametrize("word", ["off", "OFF", "0", "false", "no"])
def test_stats_of_a_ledger_that_is_off(word: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These words are not a file's name: the ledger in the default place is shown."""
    monkeypatch.setenv("LOCALWHISPER_LEDGER", word)
    monkeypatch.setenv("XDG_STATE_HOME", str(here))
    assert "ledger.sqlite3" in command("stats").stderr
    with closing(Ledger(here / "localwhisper" / "ledger.sqlite3")) as ledger:
        ledger.record(row(time.time(), audio=60.0))
    assert "1 calls" in command("stats").stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["status"], 1), (["wake", "AA:BB:CC:DD:EE:FF@127.0.0.1", "--wait", "0.1"], 1), (["discover"], 2)],
)
def test_without_a_network(arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error message and no traceback, also for a name without an address."""
    import zeroconf

    def unplugged(**_: Any) -> Any:
        raise RuntimeError("No interfaces to listen on, check that any interfaces have IP version 4")

    monkeypatch.setattr(zeroconf, "Zeroconf", unplugged)
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", "auto,http://nowhere.invalid:5000/v1")
    done = command(*arguments)
    assert (done.exit_code, type(done.exception)) == (code, SystemExit)
    assert "No interfaces" in done.stderr


def test_discover(capsys: pytest.CaptureFixture[str]) -> None:
    """It lists the servers, or says how to start one that is found; so does `status`."""
    pc = Found("pc-5000", ("http://10.0.0.1:5000/v1",), "0.1.0", "base")
    for found, code, said in (((pc,), 0, "http://10.0.0.1:5000/v1"), ((), 1, "--announce")):
        with pytest.raises(typer.Exit) as end:
            status.show_found(found, as_json=False)
        assert end.value.exit_code == code
        assert said in capsys.readouterr().out
    with pytest.raises(typer.Exit):
        status.show_found((pc,), as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["model"] == "base"
    status.show_servers(Console(), [], Policy.LOCAL_ONLY)
    assert "--announce" in capsys.readouterr().out


def test_wake(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is an argument or from the environment; --wait waits until a server is ready, or the time is up."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert command("wake").exit_code == 2
    assert command("wake", "nonsense").exit_code == 2
    sent = command("wake", "AA:BB:CC:DD:EE:FF@127.0.0.1")
    assert (sent.exit_code, sent.stdout) == (0, "Sent a packet to AA:BB:CC:DD:EE:FF@127.0.0.1.\n")
    monkeypatch.setenv("LOCALWHISPER_WAKE", "AA:BB:CC:DD:EE:F0@127.0.0.1")
    local_server.answers_probe = in_turn(error(503), error(503), then=answering(as_json(HEALTH)))
    assert "ready" in command("wake", "--wait", "30").stdout
    assert pauses == [1.0]
    local_server.answers_probe = error(503)
    assert command("wake", "--wait", "0.01").exit_code == 1
    assert "could not be sent" in command("wake", "AA:BB:CC:DD:EE:FF@nowhere.invalid").stderr


def test_skill_install(here: Path) -> None:
    """It prints the files that it wrote; files that differ are replaced only with --force."""
    done = command("skill", "install", "--dir", here)
    assert done.stdout.splitlines() == [str(here / SKILL.name / each) for each in ("SKILL.md", "scripts/transcribe.sh")]
    assert "Already there" in command("skill", "install", "--dir", here).stdout
    (here / SKILL.name / "SKILL.md").write_text("mine")
    assert "SKILL.md. --force" in command("skill", "install", "--dir", here).stderr
    assert (here / SKILL.name / "SKILL.md").read_text() == "mine"
    assert command("skill", "install", "--dir", here, "--force").exit_code == 0
    script = here / SKILL.name / "scripts" / "transcribe.sh"
    assert os.access(script, os.X_OK)
    assert script.read_bytes() == (SKILL / "scripts" / "transcribe.sh").read_bytes()
    (here / "file").touch()
    assert command("skill", "install", "--dir", here / "file").exit_code == 1


@pytest.mark.parametrize("name", ["transcribe", "run", "status", "stats", "discover", "wake", "demo", "skill"])
def test_every_command_has_help(name: str) -> None:
    """The first page lists the commands, and each command's own page has an example."""
    assert name in command("--help").stdout
    page = command(name, "install", "--help") if name == "skill" else command(name, "--help")
    assert page.exit_code == 0
    assert f"• localwhisper {name}" in page.stdout
