from __future__ import annotations

import errno
import functools
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import trustme
import zeroconf

from localwhisper_client import __version__
from localwhisper_server import cli, server
from localwhisper_server.operations import mdns
from localwhisper_server.operations.host import interface_addresses
from localwhisper_server.runtime import Runtime
from localwhisper_server.settings import Settings
from localwhisper_server.whisper import weights
from tests.server.engine_double import EngineDouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Put back what the command changes in its process: the log and a signal's handler."""
    import logging

    root = logging.getLogger()
    handlers, level, handler = root.handlers, root.level, signal.getsignal(signal.SIGTERM)
    yield
    root.handlers, root.level = handlers, level
    signal.signal(signal.SIGTERM, handler)


class Served:
    """Stands in for `server.run`: keeps the settings it was called with."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []

    def __call__(self, settings: Settings, _listening: socket.socket, /, *, environ: Mapping[str, str]) -> bool:
        self.settings.append(settings)
        return True

    def start(self, *arguments: str) -> Settings:
        """Run the command and return the settings."""
        cli.main(arguments, serve=self)
        return self.settings[-1]


@pytest.fixture
def served() -> Served:
    """Give a server that only keeps its settings."""
    return Served()


def _exit(arguments: list[str], **replaced: Any) -> Any:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments, **replaced)
    return stopped.value.code


def test_help_mentions_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With its description; the environment variables are mentioned, and no Python type is."""
    monkeypatch.setenv("COLUMNS", "200")
    assert _exit(["--help"]) == 0
    text = capsys.readouterr().out
    for name, option in Settings.model_fields.items():
        assert re.search(rf"--{name.replace('_', '-')}[ ,]", text)
        assert option.description
        assert option.description[:30] in text
    assert "LOCALWHISPER_SERVER_" in text
    assert "--device auto|cpu|cuda" in text
    assert text.index("doctor") < text.index("  --model")
    assert not re.search(r"(None|IPv4Network|SecretStr|tuple)\[|default: (None|IPv4Network|SecretStr|tuple)", text)
    cli.main(["--version"])
    assert capsys.readouterr().out == f"localwhisper-server {__version__}\n"


OPTIONS: dict[str, Any] = {
    "max_loaded": 1,
    "host": "127.0.0.1",
    "port": 0,
    "device": "cpu",
    "compute_type": "float32",
    "threads": 3,
    "batch": 4,
    "window": "exact",
    "max_wait": 30.0,
    "cache": 9,
    "idle_unload": 60.0,
    "queue": 0,
    "max_upload": 1000,
    "max_seconds": 60.5,
    "log_level": "warning",
    "log_format": "json",
    "log_file": "none",
    "max_per_address": 3,
    "min_upload_rate": 9.0,
    "upload_grace": 4.0,
    "upstream": "https://api.example.org/v1",
    "drain": 5.0,
    "wyoming": "0.0.0.0:10300",
}
TESTED_ELSEWHERE = {
    *("api_key", "api_key_file", "upstream_api_key", "upstream_api_key_file", "allow_from", "allow_host"),
    *("cors_origin", "trusted_proxy", "certfile", "keyfile", "cache_dir", "announce", "quiet", "model"),
    "diarization_models",
}


@pytest.mark.parametrize("form", ["--{}={}", "--{} {}", "environment"])
def test_every_option_is_read_from_the_command_line_and_the_environment(
    form: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are not plain values have tests of their own."""
    assert OPTIONS.keys() | TESTED_ELSEWHERE == set(Settings.model_fields)
    line = []
    for name, value in OPTIONS.items():
        if form == "environment":
            monkeypatch.setenv(f"LOCALWHISPER_SERVER_{name.upper()}", str(value))
        else:
            line += form.format(name.replace("_", "-"), value).split()
    assert served.start(*line).model_dump(include=set(OPTIONS)) == OPTIONS


def test_defaults_and_what_overrides_them(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable counts as not set; the command line wins; a flag takes no value."""
    monkeypatch.setenv("LOCALWHISPER_SERVER_MODEL", "")
    monkeypatch.setenv("LOCALWHISPER_SERVER_PORT", "5999")
    settings = served.start("--port", "0")
    assert Settings.model_fields["port"].default == 5000
    assert (settings.model, settings.device, settings.compute_type, settings.threads) == (("auto",), "auto", "auto", 0)
    assert (settings.host, settings.port, settings.queue, settings.api_key) == ("127.0.0.1", 0, 64, ())
    flags = [served.start("--port", "0", flag).announce for flag in ("--announce", "--no-announce")]
    assert flags == [True, False]


@pytest.mark.parametrize(
    "line", [["--model", "large-v3-turbo", "--model", "small"], ["--model=large-v3-turbo, small"], []], ids=str
)
def test_several_models(line: list[str], served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option each, or names with commas between them, as the environment has them."""
    if not line:
        monkeypatch.setenv("LOCALWHISPER_SERVER_MODEL", "large-v3-turbo,small")
    assert served.start("--port", "0", *line).model == ("large-v3-turbo", "small")


@pytest.mark.parametrize("line", [["--model", "base", "--model", "no such model"], ["--model", "base,no such model"]])
def test_each_model_must_have_a_name_that_can_exist(
    line: list[str], served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything listens."""
    with pytest.raises(SystemExit) as ended:
        served.start("--port", "0", *line)
    assert ended.value.code == os.EX_CONFIG
    assert "no such model" in capsys.readouterr().err


def test_a_key_and_a_folder(served: Served, tmp_path: Path) -> None:
    """Settings that are printed do not show the key."""
    settings = served.start("--port", "0", "--api-key", "hush-hush", "--cache-dir", str(tmp_path))
    assert settings.keys() == ("hush-hush",)
    assert settings.cache_dir == tmp_path
    assert "hush-hush" not in repr(settings)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("port", value) for value in ("abc", "-1", "70000")],
        ("device", "tpu"),
        ("compute-type", "int4"),
        ("threads", "-1"),
        ("batch", "257"),
        ("window", "short"),
        ("max-wait", "0"),
        ("queue", "many"),
        ("max-upload", "0"),
        ("max-seconds", "nan"),
        ("log-level", "loud"),
    ],
)
@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_bad_value_is_one_line_and_exit_64(
    option: str,
    value: str,
    way: str,
    served: Served,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """EX_USAGE; the line names the option and the values that it takes, without a traceback."""
    monkeypatch.setenv("LOCALWHISPER_SERVER_PORT", "0")
    if way == "environment":
        monkeypatch.setenv(f"LOCALWHISPER_SERVER_{option.upper().replace('-', '_')}", value)
    assert _exit([f"--{option}={value}"] if way == "option" else [], serve=served) == 64
    line = capsys.readouterr().err
    assert re.fullmatch(rf"localwhisper-server: --{option}: Input should be .+\n", line)
    assert not served.settings


@pytest.mark.parametrize("arguments", [["--nonsense", "1"], ["extra"], ["--port"]])
def test_an_unknown_argument_is_refused(
    arguments: list[str], served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, like any other wrong setting."""
    assert _exit(arguments, serve=served) == 64
    line = capsys.readouterr().err
    assert re.fullmatch(r"localwhisper-server: .+ `localwhisper-server --help` lists the options\.\n", line)
    assert not served.settings


def test_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    """EX_CONFIG, so that systemd does not try again; before the server listens."""
    for name in ("whisper-nine", "./no-such-folder", "/no/such/folder"):
        assert _exit(["--port", "0", "--model", name]) == os.EX_CONFIG
        said = capsys.readouterr().err
        assert said.startswith(f"localwhisper-server: No model is called '{name}'")
        assert "listening" not in said


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (errno.EADDRINUSE, 71, "Is another server running"),
        (errno.EACCES, 77, "below 1024"),
        (errno.EADDRNOTAVAIL, 71, "no such address"),
        (errno.EAFNOSUPPORT, 71, "Is --host right"),
    ],
)
def test_a_socket_that_cannot_be_bound_is_one_line(
    capfd: pytest.CaptureFixture[str], failure: int, code: int, said: str
) -> None:
    """With the way out, and an exit status for the kind of trouble."""

    def listen(_host: str, _port: int) -> socket.socket:
        raise OSError(failure, "the reason")

    assert _exit(["--port", "0"], listen=listen) == code
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (weights.ModelDamaged(Path("/models/base"), RuntimeError("File model.bin is incomplete")), 65, "Delete that"),
        (weights.ModelError("No model has this name"), 69, "No model has this name"),
        (RuntimeError("Library libcudnn_ops.so.9 is not found"), 70, "`localwhisper-server doctor` looks for"),
        (MemoryError(), 70, "MemoryError"),
        (PermissionError(errno.EACCES, "Permission denied"), 77, "Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 73, "No space left"),
        (KeyboardInterrupt(), 130, None),
    ],
    ids=["damaged", "no model", "no cuDNN", "no memory", "no permission", "disk full", "ctrl-c"],
)
def test_a_server_that_cannot_start_is_one_line(
    failure: BaseException, code: int, said: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """And an exit status for each kind of trouble; no line for Ctrl-C, and never a traceback."""

    def fail(*_: object, **__: object) -> bool:
        raise failure

    assert _exit(["--port", "0"], serve=fail) == code
    lines = capfd.readouterr().err.splitlines()
    assert (len(lines) == 1 and said in lines[0]) if said else not lines


class Session:
    """The command, run in this process on a real socket, and a thread that calls the server and then stops it."""

    def __init__(self, folder: Path, *options: str) -> None:
        (folder / "model.bin").touch()
        self._line = ["--port", "0", "--model", str(folder), *options]
        self._scheme = "https" if "--certfile" in options else "http"
        self._failures: list[BaseException] = []

    def run(self, use: Callable[[httpx2.Client], None]) -> None:
        """Start the server, call `use`, stop with SIGTERM; returns if the command ends in success."""
        runtime = functools.partial(Runtime, load=lambda *_: EngineDouble())

        def serve(settings: Settings, listening: socket.socket, /, *, environ: Mapping[str, str]) -> bool:
            user = threading.Thread(target=self._user, args=(listening.getsockname()[1], use))
            user.start()
            try:
                return server.run(settings, listening, environ=environ, make_runtime=runtime)
            finally:
                user.join(60)

        cli.main(self._line, serve=serve)
        assert not self._failures

    def _user(self, port: int, use: Callable[[httpx2.Client], None]) -> None:
        try:
            transport = httpx2.HTTPTransport(retries=50, verify=False)
            url = f"{self._scheme}://127.0.0.1:{port}"
            with httpx2.Client(base_url=url, transport=transport, timeout=60, trust_env=False) as client:
                while not client.get("/health").json()["ready"]:
                    pass
                use(client)
        except BaseException as failure:  # noqa: BLE001 - raised again by `run`
            self._failures.append(failure)
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_server_from_start_to_stop(
    tmp_path: Path, voices: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers, and SIGTERM is a success. Console and file have a line for the request, without its words."""

    def use(client: httpx2.Client) -> None:
        files = {"file": voices["demo"].read_bytes()}
        answer = client.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, files=files)
        assert answer.json() == {"text": "Hello.", "usage": {"type": "duration", "seconds": 5}}
        ids.append(answer.headers["x-request-id"])

    ids: list[str] = []
    file = tmp_path / "server.log"
    Session(tmp_path, "--log-file", str(file)).run(use)
    console = capsys.readouterr().err
    for expected in ("listening on http://127.0.0.1:", f"ready: {tmp_path}", f"the log is kept in {file}"):
        assert expected in console
    assert "Traceback" not in console
    (line,) = [line for line in file.read_text().splitlines() if "POST" in line]
    assert line in console
    request = rf' {ids[0]} POST /v1/audio/transcriptions 200 [\d.]+s, "upload", 4\.9 s of en, [\d.]+ x real time$'
    assert re.search(request, line)


def test_a_server_with_a_certificate_is_announced_with_https(tmp_path: Path) -> None:
    """By real multicast, which a client's search asks for; without the setting it would try http."""
    if not mdns.reachable_at("0.0.0.0", interface_addresses()):
        pytest.skip("this machine has no network")
    chain = tmp_path / "chain.pem"
    trustme.CA().issue_cert("pc.example.org").private_key_and_cert_chain_pem.write_to_path(str(chain))
    found: list[Any] = []

    def use(client: httpx2.Client) -> None:
        name = socket.gethostname().partition(".")[0][:50]
        with zeroconf.Zeroconf(interfaces=["127.0.0.1"]) as network:
            found.append(
                network.get_service_info(mdns.SERVICE, f"{name}-{client.base_url.port}.{mdns.SERVICE}", 60_000)
            )

    Session(tmp_path, "--host", "0.0.0.0", "--announce", "--certfile", str(chain)).run(use)
    assert found[0].properties[b"scheme"] == b"https"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_log_file_that_cannot_be_written(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and an exit status for a file that was set; a warning for the default, which is named after the port."""
    assert _exit(["--port", "0", "--log-file", "/dev/full"], serve=served) == os.EX_CANTCREAT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("localwhisper-server: cannot write the log to /dev/full: No space left")
    assert _exit(["--port", "0", "--log-file", str(tmp_path / "none" / "x.log")], serve=served) == os.EX_OSERR
    assert not served.settings
    capsys.readouterr()
    (tmp_path / "in the way").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "in the way"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    served.start("--port", str(port), "--log-file", "auto")
    (line,) = capsys.readouterr().err.splitlines()
    assert "WARNING" in line
    assert f"server-{port}.log: {os.strerror(errno.ENOTDIR)}" in line
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    served.start("--port", str(port), "--log-file", "auto")
    served.start("--port", "0", "--log-file", "auto")
    assert [file.name for file in tmp_path.rglob("*.log")] == [f"server-{port}.log"]


def test_settings_come_from_the_env_file_but_the_environment_wins(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with systemd; variables of other programs in the file are set, too."""
    file = tmp_path / "server.env"
    file.write_text("LOCALWHISPER_SERVER_MODEL=small\nLOCALWHISPER_SERVER_DRAIN=9\nHF_HOME=/data\n")
    monkeypatch.setenv("LOCALWHISPER_SERVER_DRAIN", "5")
    for name in ("LOCALWHISPER_SERVER_MODEL", "HF_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    settings = served.start("--env-file", str(file), "--port", "0")
    assert (settings.model, settings.drain) == (("small",), 5.0)
    assert os.environ["HF_HOME"] == "/data"


def test_the_module_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m localwhisper_server`."""
    monkeypatch.setattr("sys.argv", ["localwhisper-server", "--version"])
    runpy.run_module("localwhisper_server", run_name="__main__")
    assert __version__ in capsys.readouterr().out
    runpy.run_module("localwhisper_server.__main__", run_name="imported")
    assert not capsys.readouterr().out


def _without(missing: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command where these packages cannot be imported."""
    start = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); from localwhisper_server.cli import main"
    command = [sys.executable, "-c", f"{start}; main(sys.argv[1:])", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_and_version_need_no_engine(option: str) -> None:
    """Nor the web server."""
    assert _without(("ctranslate2", "faster_whisper", "uvicorn"), option).returncode == 0


@pytest.mark.parametrize("missing", ["ctranslate2", "faster_whisper", "uvicorn"])
def test_the_doctor_examines_an_engine_that_cannot_be_imported(missing: str) -> None:
    """That is one of its findings."""
    done = _without((missing,), "doctor", "--json", "--model", "./none")
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["findings"][-1]["message"].startswith("not tried")
