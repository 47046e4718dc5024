"""The skill's script, run by bash against a real server."""

from __future__ import annotations

import email
import email.policy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client.cli.app import SKILL
from tests.client.fault_server import error, refusing, says

if TYPE_CHECKING:
    from tests.client.fault_server import FaultServer, Request

SCRIPT = SKILL / "scripts" / "transcribe.sh"
SPOKEN = "Grüße, „Welt“ 🏠\n"
WORDS = says(200, b"text/plain; charset=utf-8", SPOKEN.encode(), b"x-localwhisper-queue-seconds: 0.000")
PLAIN = {"model": b"whisper-1", "response_format": b"text"}

pytestmark = pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="needs bash and curl")


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """A recording."""
    path = tmp_path / "voice.ogg"
    path.write_bytes(b"OggS\r\n--boundary\r\n\x00\xff")
    return path


@pytest.fixture
def local_server(local_server: FaultServer) -> FaultServer:
    """A LAN server that answers with words."""
    local_server.behaviour = WORDS
    return local_server


def run(*arguments: str | Path, url: str | None = None, cwd: Path | None = None, **environ: str) -> Any:
    """Run the script with these settings and no others."""
    environment = {"PATH": os.environ["PATH"], **environ} | ({"WHISPER_API_URL": url} if url else {})
    return subprocess.run(
        ["bash", SCRIPT, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def parts(request: Request) -> dict[str, Any]:
    """Read the form as a server does: field name to content, and the file's name under `filename`."""
    head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + request.body, policy=email.policy.HTTP)
    found: dict[str, Any] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        found[name] = part.get_payload(decode=True)
        if part.get_filename():
            found["filename"] = part.get_filename()
    return found


def test_words_go_beside_the_recording(voice: Path, local_server: FaultServer) -> None:
    """As the bundled skill does: voice.ogg becomes voice.txt, its path is printed, and the input stays."""
    done = run(voice, url=local_server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{voice.with_suffix('.txt')}\n", "")
    assert voice.with_suffix(".txt").read_text() == SPOKEN
    (call,) = local_server.calls
    assert parts(call) == {"file": voice.read_bytes(), "filename": "audio.ogg", **PLAIN}
    assert sorted(path.name for path in voice.parent.iterdir()) == ["voice.ogg", "voice.txt"]


def test_every_option_is_sent(voice: Path, local_server: FaultServer, tmp_path: Path) -> None:
    """Before or after the file; the folder of --out is made."""
    local_server.behaviour = says(200, b"application/json", b'{"text":"x"}')
    out = tmp_path / "new folder" / "out.json"
    before, after = ("--json", "--model", "small", "--language", "de"), ("--prompt", "Peter", "--out", out)
    done = run(*before, voice, *after, url=local_server.url)
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert out.read_text() == '{"text":"x"}'
    fields = {"model": b"small", "language": b"de", "prompt": b"Peter", "response_format": b"json"}
    assert parts(local_server.calls[0]).items() >= fields.items()


@pytest.mark.parametrize(
    "prompt",
    ["@/etc/hostname", "</etc/hostname", 'a "quoted" \\ word', "two\nlines", "🏠 für 'uns'", "a;type=x", "$(id) `id`"],
)
def test_a_prompt_may_have_any_characters(prompt: str, voice: Path, local_server: FaultServer) -> None:
    """None of them is special to curl or to the shell."""
    assert run(voice, "--prompt", prompt, url=local_server.url).returncode == 0
    assert parts(local_server.calls[0])["prompt"].replace(b"\r\n", b"\n").decode() == prompt


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("a b.ogg", "a b.txt"),
        ("a;type=x,b.ogg", "a;type=x,b.txt"),
        ('it\'s "it".m4a', 'it\'s "it".txt'),
        ("@x.ogg", "@x.txt"),
        ("-x.ogg", "-x.txt"),
        ("ünï🏠.OGG", "ünï🏠.txt"),
        ("no ending", "no ending.txt"),
        (".hidden", ".hidden.txt"),
        ("back\\slash.o\ngg", "back\\slash.txt"),
    ],
)
def test_a_file_may_have_any_name(name: str, output: str, tmp_path: Path, local_server: FaultServer) -> None:
    """And a folder's name may have a dot. Of the name only the ending is sent."""
    folder = tmp_path / "a.b"
    folder.mkdir()
    (folder / name).write_bytes(b"sound")
    done = run("--", name, url=local_server.url, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / output).exists()
    sent = parts(local_server.calls[0])
    assert sent["file"] == b"sound"
    assert sent["filename"].startswith("audio")


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/audio/transcriptions"])
def test_the_address_may_be_given_in_any_of_its_forms(end: str, voice: Path, local_server: FaultServer) -> None:
    """With /v1 or without."""
    assert run(voice, url=local_server.url.removesuffix("/v1") + end).returncode == 0
    assert local_server.calls[0].path == "/v1/audio/transcriptions"


def test_the_key_is_the_lan_servers(voice: Path, local_server: FaultServer) -> None:
    """OpenAI's key is never sent."""
    for keys in ({}, {"LOCALWHISPER_API_KEY": "ours"}, {"LOCALWHISPER_API_KEY": "ours", "WHISPER_API_KEY": "mine"}):
        run(voice, url=local_server.url, OPENAI_API_KEY="sk-secret", **keys)
    assert [call.headers.get("authorization") for call in local_server.calls] == [None, "Bearer ours", "Bearer mine"]


def test_no_proxy_and_no_curlrc(voice: Path, local_server: FaultServer, cloud: FaultServer, tmp_path: Path) -> None:
    """Either could send the audio elsewhere."""
    (tmp_path / ".curlrc").write_text(f"url = {cloud.url}\n")
    elsewhere = {"http_proxy": cloud.url, "ALL_PROXY": cloud.url, "HOME": str(tmp_path)}
    assert run(voice, url=local_server.url, **elsewhere).returncode == 0
    assert not cloud.calls


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (error(400), "no 400"),
        (says(302, b"text/plain", b"elsewhere"), "status 302"),
        (says(200, b"text/html", b"<h1>Log in</h1>"), "not a transcript"),
    ],
)
def test_a_failure_changes_no_file(behaviour: Any, said: str, voice: Path, local_server: FaultServer) -> None:
    """An older transcript stays. The server's message goes to standard error; the rest is in `test_deleting`."""
    local_server.behaviour = behaviour
    voice.with_suffix(".txt").write_text("an older transcript")
    done = run(voice, url=local_server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert voice.with_suffix(".txt").read_text() == "an older transcript"
    assert len(list(voice.parent.iterdir())) == 2


def test_no_server(voice: Path) -> None:
    """The message has the address that was asked."""
    with refusing() as port:
        done = run(voice, url=f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Is the server on?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "which file?"),
        (["--bogus", "x"], 2, "unknown option: --bogus"),
        (["x", "y"], 2, "one file at a time"),
        (["x", "--model"], 2, "--model needs a value"),
        (["nowhere.ogg"], 1, "no such file"),
        (["voice.ogg", "--out", "voice.ogg"], 1, "would replace the recording"),
        (["voice.ogg", "--out", "."], 1, "is a folder"),
        (["voice.ogg", "--out", "voice.ogg/x.txt"], 1, ""),
    ],
)
def test_wrong_arguments(arguments: list[str], code: int, said: str, voice: Path) -> None:
    """Nothing is sent, and the error says what is wrong."""
    done = run(*arguments, cwd=voice.parent, url="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_help_and_the_default_server() -> None:
    """Help is on standard output. The default is read in the script, since no machine here has that name."""
    assert "--delete-input" in run("--help").stdout
    assert "${WHISPER_API_URL:-http://wsl.home:5000}" in SCRIPT.read_text()


def test_the_script_is_clean() -> None:
    """By shellcheck, if it is installed."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=beside)
    if shellcheck is None:
        pytest.skip("no shellcheck here")
    subprocess.run([shellcheck, SCRIPT], check=True)


@pytest.mark.model
def test_with_the_real_server(tmp_path: Path) -> None:
    """The script writes the words of a real recording."""
    pytest.importorskip("faster_whisper")
    from localwhisper_client.cli.demo import VOICE
    from localwhisper_client.server_process import serving

    recording = tmp_path / "voice.ogg"
    shutil.copy(VOICE, recording)
    with serving("--model", "base") as server:
        done = run(recording, "--prompt", 'Say "milk"', url=server.url)
    assert done.returncode == 0, done.stderr
    assert "milk" in recording.with_suffix(".txt").read_text()
