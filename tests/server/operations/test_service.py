"""The systemd service: the unit's text, the steps around it, the settings file, and the command line."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import PurePosixPath

import dotenv
import pytest

from localwhisper_server import cli
from localwhisper_server.operations import service
from localwhisper_server.settings import Settings, variable


class Installed(service.Service):
    """A service in a home of the test's own. `lines` are the commands it ran; one with a word of `fail` fails."""

    def __init__(self, home, *fail, status=1, **given):
        self.lines, self.said = [], []

        def run(line):
            self.lines.append(" ".join(line))
            return status if any(word in self.lines[-1] for word in fail) else 0

        given = {"environ": {}, "python": "/opt/venv/bin/python", "wsl": False} | given
        super().__init__(home=home, run=run, say=self.said.append, **given)

    @property
    def text(self):
        """All that was printed."""
        return "\n".join(self.said)


def directives(unit: str) -> dict[str, str]:
    """Read a unit's assignments."""
    return dict(line.split("=", 1) for line in unit.splitlines() if re.match(r"[A-Z]\w+=", line))


def test_the_unit_restarts_and_watches():
    """Five seconds after any end the service starts again; it has a watchdog and time for its drain."""
    unit = directives(service.unit_text("/opt/python", PurePosixPath("/home/me/server.env")))
    assert unit["Type"] == "notify"
    assert unit["NotifyAccess"] == "main"
    assert unit["ExecStart"] == "/opt/python -E -P -m localwhisper_server"
    assert unit["EnvironmentFile"] == "-/home/me/server.env"
    assert (unit["Restart"], unit["RestartSec"], unit["StartLimitIntervalSec"]) == ("always", "5", "0")
    assert unit["RestartPreventExitStatus"] == "64 78"
    assert int(unit["WatchdogSec"]) == 300
    assert int(unit["TimeoutStopSec"]) > Settings.model_fields["drain"].default
    # The decoding process must live as long as the request that it decodes for.
    assert unit["KillMode"] == "mixed"
    assert unit["WantedBy"] == "default.target"


def test_the_unit_is_hardened_but_keeps_the_gpu():
    """Nothing hides /dev/nvidia*, forbids compiled kernels, or needs privileges that a user lacks."""
    unit = directives(service.unit_text("/opt/python", PurePosixPath("/e")))
    assert unit["NoNewPrivileges"] == "yes"
    assert {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"} == set(unit["RestrictAddressFamilies"].split())
    breaks_cuda = {"PrivateDevices", "MemoryDenyWriteExecute", "DevicePolicy", "SystemCallFilter", "ProcSubset"}
    breaks_user_units = {"User", "DynamicUser", "PrivateTmp", "ProtectSystem", "ProtectHome", "CapabilityBoundingSet"}
    assert not unit.keys() & (breaks_cuda | breaks_user_units)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("settings", ["/home/me/.config/localwhisper/server.env", "/home/me and you/100%/server.env"])
def test_systemd_itself_finds_nothing_wrong(tmp_path, settings):
    """`systemd-analyze --user verify` prints nothing, for a plain home and for a path with blanks and signs."""
    python = tmp_path / "my 100% venv" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    file = tmp_path / "localwhisper.service"
    file.write_text(service.unit_text(str(python), PurePosixPath(settings)))
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    finished = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(file)], check=False, capture_output=True, text=True, env=environ
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


@pytest.mark.parametrize(("environ", "folder"), [({}, ".config"), ({"XDG_CONFIG_HOME": "/elsewhere"}, "/elsewhere")])
def test_files_are_where_systemd_looks(tmp_path, environ, folder):
    """In the user's folder of settings, or in the one that XDG_CONFIG_HOME names."""
    made = Installed(tmp_path, environ=environ)
    assert made.unit == tmp_path / folder / "systemd/user/localwhisper.service"
    assert made.settings == tmp_path / folder / "localwhisper/server.env"


def test_installing_writes_starts_and_can_be_repeated(tmp_path):
    """The second time keeps the settings and writes the Python that it is run with; both start the service."""
    first, moved = Installed(tmp_path), Installed(tmp_path, python="/new/python", wsl=True)
    assert first.install({"LOCALWHISPER_SERVER_PORT": "5055"}) == 0
    assert first.lines == [
        "systemctl --user daemon-reload",
        "systemctl --user enable localwhisper.service",
        "systemctl --user restart --no-block localwhisper.service",
    ]
    content = first.settings.read_bytes()
    assert moved.install({}) == 0
    assert moved.lines == first.lines
    assert moved.settings.read_bytes() == content
    assert "ExecStart=/new/python" in moved.unit.read_text()
    assert "sudo loginctl enable-linger $USER" in first.text
    assert ["docs/wsl2.md" in each.text for each in (first, moved)] == [False, True]


@pytest.mark.parametrize("key", ["secret", None], ids=["a new key", "the key that is in it"])
@pytest.mark.parametrize("before", [None, 0o644], ids=["a new file", "a file that others can read"])
def test_settings_are_for_their_owner_alone(tmp_path, key, before):
    """The server's key is in them; a file that others can read is closed, even if its text does not change."""
    made = Installed(tmp_path)
    if before:
        made.settings.parent.mkdir(parents=True)
        made.settings.write_text("LOCALWHISPER_SERVER_API_KEY=old\n")
        made.settings.chmod(before)
    made.install({"LOCALWHISPER_SERVER_API_KEY": key} if key else {})
    assert made.settings.stat().st_mode & 0o777 == 0o600
    if before:
        assert made.settings.read_text() == f"LOCALWHISPER_SERVER_API_KEY={key or 'old'}\n"


def test_a_write_that_is_cut_off_loses_no_settings(tmp_path):
    """The old file stays whole until the new one is on the disk; nothing else is left beside it."""
    made = Installed(tmp_path)
    made.install({"LOCALWHISPER_SERVER_API_KEY": "secret"})
    before = made.settings.read_bytes()
    # A write past the limit fails in its middle, as on a full disk. -B: Python must not write caches of modules either.
    code = f"""import resource, signal
from localwhisper_server import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)}, {len(before)}))
cli.main(["service", "install", "--model", "small"])"""
    environ = {"HOME": str(tmp_path), "PATH": str(tmp_path)}
    line = [sys.executable, "-B", "-c", code]
    ended = subprocess.run(line, env=environ, check=False, capture_output=True, text=True)
    assert ended.returncode == os.EX_OSERR, ended.stderr
    assert made.settings.read_bytes() == before
    assert [path.name for path in made.settings.parent.iterdir()] == ["server.env"]


def test_settings_behind_a_link_stay_there(tmp_path):
    """A user may keep them in a folder under version control."""
    made = Installed(tmp_path)
    kept = tmp_path / "dotfiles" / "server.env"
    kept.parent.mkdir()
    made.settings.parent.mkdir(parents=True)
    kept.write_text("")
    made.settings.symlink_to(kept)
    made.install({"LOCALWHISPER_SERVER_PORT": "1"})
    assert made.settings.is_symlink()
    assert kept.read_text() == "LOCALWHISPER_SERVER_PORT=1\n"


@pytest.mark.parametrize("by", ["the folder it starts in", "PYTHONPATH"])
def test_the_service_imports_nothing_of_the_home_folder(tmp_path, by):
    """The service does not run a secrets.py, json.py or av.py that lies there."""
    for name in ("secrets.py", "json.py", "av.py", "numpy.py", "localwhisper_server.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the home folder')")
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    if by == "PYTHONPATH":
        environ["PYTHONPATH"] = str(tmp_path)
    line = [sys.executable, *service.RUN_SERVER, "--version"]
    done = subprocess.run(line, cwd=tmp_path, env=environ, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, "localwhisper-server"), done.stderr


def test_uninstalling_keeps_the_settings_and_can_be_repeated(tmp_path):
    """The unit is removed, also where it does not run; the second time there is nothing to do."""
    made, again = Installed(tmp_path, "disable"), Installed(tmp_path)
    made.install({})
    assert made.uninstall() == 0
    assert not made.unit.exists()
    assert made.settings.exists()
    assert made.lines[-1] == "systemctl --user daemon-reload"
    assert f"your settings stay in {made.settings}" in made.text
    assert again.uninstall() == 0
    assert again.lines == []
    assert "nothing to remove" in again.text


def test_showing_the_service(tmp_path):
    """Status and log are systemd's; one line says that no service is installed, or that a command is missing."""
    made = Installed(tmp_path)
    assert made.show(*service.STATUS) == os.EX_UNAVAILABLE
    assert made.lines == []
    made.install({})
    assert made.show(*service.LOGS, "--follow") == 0
    assert made.lines[-1] == "journalctl --user --unit localwhisper.service --lines 100 --follow"
    missing = Installed(tmp_path, "journalctl", status=127)
    assert missing.show(*service.LOGS) == 127
    assert "no command 'journalctl'" in missing.text


def test_the_template_explains_every_setting_and_sets_none():
    """The file names each option with its default, as a comment."""
    template = service.template()
    for name in Settings.model_fields:
        assert f"\n#{variable(name)}=" in template
    assert dotenv.dotenv_values(stream=io.StringIO(template)) == {}


def test_what_the_user_wrote_stays():
    """Only the named settings change: in their place, or at the end."""
    text = "# mine\nLOCALWHISPER_SERVER_PORT=1\n#LOCALWHISPER_SERVER_MODEL=auto\nHF_HOME=/data\n"
    changes = {"LOCALWHISPER_SERVER_PORT": "2", "LOCALWHISPER_SERVER_MODEL": "small", "X": "a b"}
    assert service.merged(text, changes) == (
        "# mine\nLOCALWHISPER_SERVER_PORT=2\n#LOCALWHISPER_SERVER_MODEL=auto\nHF_HOME=/data\n"
        "LOCALWHISPER_SERVER_MODEL=small\nX='a b'\n"
    )


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_comment_stays_a_comment(separator):
    """A separator that ends a line for Python, but not for systemd and dotenv, begins no setting."""
    text = f"# see{separator}LOCALWHISPER_SERVER_PORT=1\r\nHF_HOME=/data\r\n"
    merged = service.merged(text, {"X": "1"})
    assert dotenv.dotenv_values(stream=io.StringIO(merged)) == {"HF_HOME": "/data", "X": "1"}
    again = service.merged(merged, {"LOCALWHISPER_SERVER_PORT": "2"})
    assert dotenv.dotenv_values(stream=io.StringIO(again))["LOCALWHISPER_SERVER_PORT"] == "2"


@pytest.mark.parametrize("value", ["plain", "a b", 'se$cret"`#', "${HOME}", '["10.0.0.0/8", "::1"]', "", "ключ", "#x"])
def test_values_survive_the_file(value):
    """What is written is what is read."""
    text = service.merged(service.template(), {"LOCALWHISPER_SERVER_API_KEY": value})
    assert dotenv.dotenv_values(stream=io.StringIO(text), interpolate=False) == {"LOCALWHISPER_SERVER_API_KEY": value}


@pytest.mark.parametrize("value", ["a\nb", "a'b", "a\\b"])
def test_values_that_systemd_and_dotenv_read_differently_are_refused(value):
    """Else a key would be right on the command line and wrong as a service."""
    with pytest.raises(ValueError, match="LOCALWHISPER_SERVER_API_KEY"):
        service.merged("", {"LOCALWHISPER_SERVER_API_KEY": value})


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Let the command line work in a home of its own, with no commands in its PATH."""
    for name in [name for name in os.environ if name.startswith(("LOCALWHISPER_", "XDG_", "WSL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def run(*arguments: str, **replaced) -> int:
    """Run the command line as on Linux and return its exit status."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments, **{"platform": "linux", **replaced})
    return 0 if stop.value.code is None else int(stop.value.code)


def test_options_become_settings_of_the_service(home, capfd):
    """`service install --model small` is kept, without systemd as well; what was not named stays as it is."""
    assert run("service", "install", "--model", "small", "--api-key", "secret") == os.EX_UNAVAILABLE
    values = dotenv.dotenv_values(home / ".config/localwhisper/server.env")
    assert values == {"LOCALWHISPER_SERVER_MODEL": "small", "LOCALWHISPER_SERVER_API_KEY": "secret"}
    said = capfd.readouterr().out
    assert "secret" not in said
    assert "docs/troubleshooting.md" in said
    run("service", "install", "--max-seconds", "60")
    values = dotenv.dotenv_values(home / ".config/localwhisper/server.env")
    assert values["LOCALWHISPER_SERVER_MAX_SECONDS"] == "60.0"
    assert values["LOCALWHISPER_SERVER_MODEL"] == "small"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["service", "--help"], 0, "service install"),
        (["service"], os.EX_USAGE, "service install"),
        (["service", "logs", "--wrong"], os.EX_USAGE, "service logs"),
        (["service", "status"], os.EX_UNAVAILABLE, "no service is installed"),
        (["service", "logs", "-f"], os.EX_UNAVAILABLE, "no service is installed"),
        (["service", "uninstall"], 0, "nothing to remove"),
        (["service", "install", "--port", "x"], os.EX_USAGE, "--port"),
        (["service", "install", "--api-key", "a'b"], os.EX_USAGE, "LOCALWHISPER_SERVER_API_KEY"),
        (["service", "install", "--help"], 0, "written to the service's settings file"),
        (["doctor", "--help"], 0, "--json"),
        (["--help"], 0, "doctor [--json]"),
        (["--env-file", "none"], os.EX_USAGE, "there is no file none"),
    ],
)
def test_the_command_line_answers(home, capfd, arguments, status, words):
    """Help where it is asked for, usage and its exit status where the words are wrong."""
    assert run(*arguments) == status
    answer = capfd.readouterr()
    assert words in answer.out + answer.err


def test_a_service_that_is_not_possible_is_one_line(home, capfd):
    """It needs Linux or WSL 2, and a home that can be written; the exit status is sysexits' for it."""
    assert run("service", "status", platform="darwin") == os.EX_UNAVAILABLE
    assert "needs systemd" in capfd.readouterr().err
    (home / ".config").write_text("in the way")
    assert run("service", "install") == os.EX_OSERR
    assert ".config" in capfd.readouterr().err


def test_doctor_checks_the_service(home, monkeypatch):
    """Without options, the server in question is the one that was installed."""
    run("service", "install", "--port", "5077")
    monkeypatch.setenv("LOCALWHISPER_SERVER_PORT", "")
    monkeypatch.delenv("LOCALWHISPER_SERVER_PORT")
    checked: list[tuple[int, bool]] = []

    def examine(_machine, settings, *, as_json, **_streams):
        checked.append((settings.port, as_json))
        return 1

    assert run("doctor", "--json", examine=examine) == 1
    assert checked == [(5077, True)]
