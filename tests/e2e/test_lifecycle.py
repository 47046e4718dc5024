"""A real server is stopped, killed and started again: accepted requests are answered, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
import pytest

from localwhisper_client.server_process import ServerProcess, serving
from tests.e2e import conftest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.model

ENGLISH = conftest.ENGLISH.read_bytes()
LONG = conftest.LONG.read_bytes()
SECONDS = 120.0
# The nox session `fuzz` sets more.
ROUNDS = int(os.environ.get("ROUNDS", "2"))


def _until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def _ask(url: str, data: bytes = ENGLISH) -> httpx2.Response:
    """Ask for a transcription."""
    form = {"model": "whisper-1", "language": "en"}
    files = {"file": ("voice.ogg", data)}
    return httpx2.post(f"{url}/v1/audio/transcriptions", data=form, files=files, timeout=SECONDS)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [
            int(child)
            for tasks in Path(f"/proc/{pid}/task").iterdir()
            for child in (tasks / "children").read_text().split()
        ]
    return []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder for temporary files of this test's servers."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@contextlib.contextmanager
def _caller(url: str, data: bytes) -> Iterator[Future[httpx2.Response]]:
    """Ask for a transcription; the future is done when the block has ended."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(_ask, url, data)


@pytest.mark.parametrize("moment", [0.0, 0.5])
def test_a_stop_while_the_model_loads(moment: float) -> None:
    """Exit status 0, at once, without a crash of the thread that loads."""
    process = subprocess.Popen(
        [sys.executable, "-m", "localwhisper_server", "--port", "0", "--model", "base"],
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert any("listening" in line for line in process.stderr)
        time.sleep(moment)  # a moment of the load; which one must not matter
        process.terminate()
        said = process.stderr.read()
        assert process.wait(SECONDS) == 0, said


def test_a_stop_answers_every_accepted_request(temporary: Path) -> None:
    """Requests that fit into the drain get their text; the port is closed meanwhile; exit status 0."""
    # A long drain: other programs may slow this machine down.
    with serving("--model", "tiny.en", "--drain", "100") as server:
        # Different bytes, or equal requests would be computed once.
        with _caller(server.url, ENGLISH + b"\0") as first, _caller(server.url, ENGLISH) as second:
            _until(lambda: server.health()["requests"] + first.done() + second.done() == 2)
            server.process.terminate()
            _until(lambda: not _accepts(server.url))
        assert server.process.wait(SECONDS) == 0
    for answer in (first.result(), second.result()):
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"]
    assert not list(temporary.iterdir())


def _accepts(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), 1).close()
    except OSError:
        return False
    return True


def test_what_does_not_fit_into_the_drain_is_refused(temporary: Path) -> None:
    """503 with Retry-After, not a broken connection."""
    with serving("--model", "tiny.en", "--drain", "0.1", "--batch", "1") as server:
        with _caller(server.url, LONG * 10) as asked:
            _until(lambda: server.health()["requests"] == 1)
            server.process.terminate()
        assert server.process.wait(SECONDS) == 0
    assert asked.result().status_code == 503
    assert int(asked.result().headers["Retry-After"]) >= 1
    assert asked.result().json()["error"]["code"] == "server_is_overloaded"


@pytest.mark.parametrize(
    ("signals", "status"), [([signal.SIGTERM, signal.SIGTERM], 0), ([signal.SIGINT], 130)], ids=["twice", "ctrl-c"]
)
def test_a_second_stop_does_not_wait(signals: list[signal.Signals], status: int) -> None:
    """A second SIGTERM, or Ctrl-C, ends the server, and the open request is not answered, though it had the time."""
    with serving("--model", "tiny.en", "--drain", "280") as server:
        children = _children(server.process.pid)
        with _caller(server.url, LONG * 10) as asked:
            _until(lambda: server.health()["requests"] == 1)
            *first, last = signals
            for number in first:
                server.process.send_signal(number)
                _until(lambda: not _accepts(server.url))  # two signals at once would be one
            server.process.send_signal(last)
            assert server.process.wait(SECONDS) == status
        assert isinstance(asked.exception(), httpx2.TransportError)
        _until(lambda: not any(_alive(pid) for pid in children))


def test_ready_and_health(server: ServerProcess) -> None:
    """/ready is true once the model is loaded, with and without /v1; /health has its fields."""
    for path in ("/ready", "/v1/ready"):
        assert httpx2.get(server.url + path).json() == {"ready": True, "reason": None}
    assert {"status", "ready", "model", "loaded", "device", "requests", "queue_seconds"} <= set(server.health())


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_kill_9_of_decoders_and_clients(frail_server: ServerProcess, temporary: Path) -> None:
    """The server answers the next request."""
    port = urlsplit(frail_server.url).port
    for _ in range(ROUNDS):
        workers = _children(frail_server.process.pid)
        assert workers
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        answer = _ask(frail_server.url)
        assert answer.status_code == 200, answer.text
        # A client in another process, killed in the middle of its upload.
        code = (
            "import socket, sys\n"
            f"s = socket.create_connection(('127.0.0.1', {port}))\n"
            "s.sendall(b'POST /v1/audio/transcriptions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 9000000\\r\\n'\n"
            "          b'Content-Type: multipart/form-data; boundary=b\\r\\n\\r\\n--b\\r\\n'\n"
            '          b\'Content-Disposition: form-data; name="file"; filename="a"\\r\\n\\r\\n\' + bytes(3000000))\n'
            "print('sent', flush=True); sys.stdin.read()"
        )
        client = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"sent\n"
            client.kill()
        assert _ask(frail_server.url).status_code == 200
    _until(lambda: frail_server.health()["requests"] == 0)
    assert not list(temporary.iterdir())


_LISTENING = re.compile(r"listening on (http://\S+) and")


def _url(log: Path) -> str:
    """Wait until a server has written its address into its log; return it."""
    _until(lambda: log.exists() and _LISTENING.search(log.read_text()))
    return _LISTENING.findall(log.read_text())[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_kill_9_of_the_server_under_a_supervisor(temporary: Path) -> None:
    """As under systemd: started again, it reports by sd_notify and to its watchdog; no process and no file is left."""
    address = str(temporary.parent / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(address)
        notify.settimeout(SECONDS)
        environ = os.environ | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"}
        for number in range(ROUNDS):
            log = temporary.parent / f"{number}.log"
            command = [sys.executable, "-m", "localwhisper_server", "--model", "tiny.en", "--port", "0"]
            command += ["--log-file", str(log)]
            with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:
                try:
                    while (said := notify.recv(99)) != b"READY=1":
                        assert said == b"WATCHDOG=1"  # reported while the model loads, too
                    url = _url(log)
                    assert _ask(url).status_code == 200
                    assert notify.recv(99) == b"WATCHDOG=1"
                    children = _children(process.pid)
                    assert children
                    with _caller(url, LONG * 10):
                        _until(lambda: ServerProcess(url, process).health()["requests"] == 1)  # noqa: B023 - called before the loop goes on
                        last = number == ROUNDS - 1
                        process.send_signal(signal.SIGTERM if last else signal.SIGKILL)
                        if last:
                            process.send_signal(signal.SIGINT)
                finally:
                    process.kill()
            _until(lambda: not any(_alive(pid) for pid in children))  # noqa: B023 - this round's
            assert not list(temporary.iterdir())
            notify.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    notify.recv(99)
            notify.settimeout(SECONDS)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_a_damaged_model_is_one_line(tmp_path: Path, damage: str) -> None:
    """Exit status 65 and the folder, without a traceback."""
    (tmp_path / "config.json").write_text("{}")
    content = {"truncated": b"\x06\0\0\0\x0c\0WhisperSp", "empty": b"", "garbage": bytes(range(256)) * 40}[damage]
    (tmp_path / "model.bin").write_bytes(content)
    command = [sys.executable, "-m", "localwhisper_server", "--model", str(tmp_path), "--port", "0"]
    done = subprocess.run([*command, "--log-level", "error"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 65
    (line,) = done.stderr.splitlines()
    assert str(tmp_path) in line
    assert "damaged or incomplete" in line


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_under_the_log_stops_nothing(tmp_path: Path) -> None:
    """Requests are answered although no line can be written to the console."""
    log = tmp_path / "server.log"
    command = [sys.executable, "-m", "localwhisper_server", "--model", "tiny.en", "--port", "0", "--log-file", str(log)]
    with open("/dev/full", "w") as full, subprocess.Popen(command, stderr=full) as process:  # noqa: PTH123 - a device
        try:
            url = _url(log)
            _until(ServerProcess(url, process).ready)
            assert _ask(url).status_code == 200
            process.terminate()
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
