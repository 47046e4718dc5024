"""The service: three managers' files as text, the steps around them, the settings file, and the command line."""
# ruff: noqa: S314, E501 - reads the XML that it wrote; rows of a table

import io
import os
import plistlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path, PurePosixPath, PureWindowsPath

import dotenv
import pytest

from localwhisper_server import cli
from localwhisper_server.operations.service import control, settings_file
from localwhisper_server.operations.service import unit as service_unit
from localwhisper_server.operations.service.unit import Place
from localwhisper_server.settings import Settings


@pytest.fixture
def place(tmp_path):
    """Give a Linux user with a home of their own and no linger."""
    return Place("linux", tmp_path, {}, "/opt/venv/bin/python", "nobody-here", 1000)


class Commands:
    """Stands for the machine's commands: remembers them; those that begin with a word in `fail` fail."""

    def __init__(self, *fail: str, status: int = 1) -> None:
        self.fail = fail
        self.status = status
        self.lines: list[str] = []
        self.said: list[str] = []

    def run(self, line):
        """Run nothing."""
        self.lines.append(" ".join(line))
        return self.status if any(word in self.lines[-1] for word in self.fail) else 0

    @property
    def act(self):
        """Give what the steps take."""
        return {"run": self.run, "say": self.said.append}

    @property
    def text(self):
        """Give all that was said."""
        return "\n".join(self.said)


def directives(unit: str) -> dict[str, str]:
    """Read a unit's assignments."""
    return dict(line.split("=", 1) for line in unit.splitlines() if re.match(r"[A-Z]\w+=", line))


def test_the_unit_restarts_and_watches():
    """Back five seconds after any end, watched while it runs, given its drain, never given up."""
    unit = directives(service_unit.systemd_unit("/opt/python", PurePosixPath("/home/me/server.env")))
    assert unit["Type"] == "notify"
    assert unit["NotifyAccess"] == "main"
    assert unit["ExecStart"] == "/opt/python -E -P -m localwhisper_server"
    assert unit["EnvironmentFile"] == "-/home/me/server.env"
    assert (unit["Restart"], unit["RestartSec"], unit["StartLimitIntervalSec"]) == ("always", "5", "0")
    assert unit["RestartPreventExitStatus"] == f"{cli.EX_USAGE} {cli.EX_CONFIG}"
    assert int(unit["WatchdogSec"]) == service_unit.WATCHDOG_SECONDS
    assert int(unit["TimeoutStopSec"]) > 30
    # The decoder must live as long as the request that it decodes for.
    assert unit["KillMode"] == "mixed"
    assert unit["WantedBy"] == "default.target"


def test_the_unit_is_hardened_but_keeps_the_gpu():
    """Nothing that hides /dev/nvidia*, forbids compiled kernels or needs privileges that a user lacks."""
    unit = directives(service_unit.systemd_unit("/opt/python", PurePosixPath("/e")))
    assert unit["NoNewPrivileges"] == "yes"
    assert {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"} == set(unit["RestrictAddressFamilies"].split())
    breaks_cuda = {"PrivateDevices", "MemoryDenyWriteExecute", "DevicePolicy", "SystemCallFilter", "ProcSubset"}
    breaks_user_units = {"User", "DynamicUser", "PrivateTmp", "ProtectSystem", "ProtectHome", "CapabilityBoundingSet"}
    assert not unit.keys() & (breaks_cuda | breaks_user_units)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("settings", ["/home/me/.config/localwhisper/server.env", "/home/me and you/100%/server.env"])
def test_systemd_itself_finds_nothing_wrong(tmp_path, settings):
    """`systemd-analyze --user verify` is silent, in a plain home and in an odd one."""
    python = tmp_path / "my 100% venv" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    file = tmp_path / "localwhisper.service"
    file.write_text(service_unit.systemd_unit(str(python), PurePosixPath(settings)))
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    finished = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(file)], check=False, capture_output=True, text=True, env=environ
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_the_launch_agent():
    """Kept alive, throttled to five seconds, with its settings file, its log, and a file for its last words."""
    settings, log, errors = (PurePosixPath(f"/Users/me/{name}") for name in ("server.env", "l.log", "e.log"))
    agent = plistlib.loads(service_unit.launchd_plist("/opt/python", settings, log, errors))
    assert agent["Label"] == service_unit.LABEL
    assert agent["ProgramArguments"] == [
        "/opt/python",
        "-E",
        "-P",
        "-m",
        "localwhisper_server",
        "--env-file",
        "/Users/me/server.env",
        "--quiet",
        "--log-file",
        "/Users/me/l.log",
    ]
    assert agent["RunAtLoad"] is agent["KeepAlive"] is True
    assert agent["ThrottleInterval"] == 5
    assert agent["StandardErrorPath"] == "/Users/me/e.log"


def test_the_scheduled_task():
    """From boot on, without a password, restarted when it fails, and never stopped for lasting long."""
    folder = PureWindowsPath(r"C:\Users\a b\AppData\Local\localwhisper")
    text = service_unit.task_xml(r"C:\venv\python.exe", folder / "server.env", folder / "server.log", r"PC\me")
    task = ET.fromstring(text)
    found = {element.tag.partition("}")[2]: element.text for element in task.iter()}
    assert text.startswith(b"\xff\xfe")  # Task Scheduler takes UTF-16
    assert task.tag == f"{{{service_unit.TASK_NAMESPACE}}}Task"
    assert "BootTrigger" in found
    assert (found["UserId"], found["LogonType"]) == (r"PC\me", "S4U")
    assert (found["Interval"], found["ExecutionTimeLimit"]) == ("PT1M", "PT0S")
    assert found["DisallowStartIfOnBatteries"] == "false"
    assert found["Command"] == "cmd.exe"
    assert found["Arguments"] == (
        r'/d /s /c ""C:\venv\python.exe" -E -P -m localwhisper_server --env-file "'
        rf'{folder}\server.env" --quiet --log-file "{folder}\server.log" >> "{folder}\errors.log" 2>&1"'
    )


PLACES = [
    ("linux", {}, ".config/systemd/user/localwhisper.service", ".config/localwhisper/server.env"),
    ("linux", {"XDG_CONFIG_HOME": "/elsewhere"}, "/elsewhere/systemd/user/localwhisper.service", None),
    ("darwin", {}, f"Library/LaunchAgents/{service_unit.LABEL}.plist", "Library/Application Support/localwhisper/server.env"),
    ("win32", {"USERDOMAIN": "PC"}, "AppData/Local/localwhisper/task.xml", "AppData/Local/localwhisper/server.env"),
    ("win32", {"LOCALAPPDATA": "/local"}, "/local/localwhisper/task.xml", "/local/localwhisper/server.env"),
]  # fmt: skip


@pytest.mark.parametrize(("platform", "environ", "file", "settings"), PLACES)
def test_files_go_where_the_manager_looks(tmp_path, platform, environ, file, settings):
    """Each platform's own places, and the user's choice of them."""
    service = service_unit.describe(Place(platform, tmp_path, environ, "/opt/python", "me", 501))
    assert service.file == tmp_path / file
    assert settings is None or service.settings == tmp_path / settings


def test_a_platform_without_a_manager_is_told():
    """One clear line, no guess."""
    with pytest.raises(service_unit.Unsupported, match="freebsd14"):
        service_unit.describe(Place("freebsd14", Path("/"), {}, "/opt/python", "me", 1))


def test_installing_writes_starts_and_can_be_repeated(place):
    """The first time writes, the second changes nothing on disk; both leave it running."""
    service, first, second = service_unit.describe(place), Commands(), Commands()
    assert control.install(service, place, {"LOCALWHISPER_SERVER_PORT": "5055"}, **first.act) == 0
    assert first.lines == [
        "systemctl --user daemon-reload",
        "systemctl --user enable localwhisper.service",
        "systemctl --user restart --no-block localwhisper.service",
    ]
    content = service.file.read_bytes(), service.settings.read_bytes()
    assert control.install(service, place, {}, **second.act) == 0
    assert (service.file.read_bytes(), service.settings.read_bytes()) == content
    assert second.lines == first.lines
    assert f"wrote {service.file}" in first.said
    assert f"unchanged {service.file}" in second.said
    assert "sudo loginctl enable-linger nobody-here" in first.text


def test_a_changed_python_is_written(place):
    """After a move to another environment, the same command mends the unit."""
    commands = Commands()
    service = service_unit.describe(place)
    control.install(service, place, {}, **commands.act)
    moved = Place("linux", place.home, {}, "/new/python", place.user, 1000)
    control.install(service_unit.describe(moved), moved, {}, **commands.act)
    assert f"updated {service.file}" in commands.said
    assert "ExecStart=/new/python" in service.file.read_text()


def test_settings_are_for_their_owner_alone(place):
    """The key of the server is in there."""
    service = service_unit.describe(place)
    control.install(service, place, {"LOCALWHISPER_SERVER_API_KEY": "secret"}, **Commands().act)
    assert service.settings.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("key", ["secret", None], ids=["a new key", "the key that is in it"])
def test_a_settings_file_that_others_could_read_is_closed(place, key):
    """At the next `service install`, whether or not that changes it."""
    service = service_unit.describe(place)
    service.settings.parent.mkdir(parents=True)
    service.settings.write_text("LOCALWHISPER_SERVER_API_KEY=old\n")
    service.settings.chmod(0o644)
    control.install(service, place, {"LOCALWHISPER_SERVER_API_KEY": key} if key else {}, **Commands().act)
    assert service.settings.read_text() == f"LOCALWHISPER_SERVER_API_KEY={key or 'old'}\n"
    assert service.settings.stat().st_mode & 0o777 == 0o600


def test_a_write_that_is_cut_off_loses_no_settings(place):
    """The old file stays whole until the new one is on the disk; nothing else is left beside it."""
    service = service_unit.describe(place)
    control.install(service, place, {"LOCALWHISPER_SERVER_API_KEY": "secret"}, **Commands().act)
    before = service.settings.read_bytes()
    # A write past the limit fails in its middle, as on a full disk. -B: nor may Python cut off the caches of modules.
    code = f"""import resource, signal
from localwhisper_server import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)}, {len(before)}))
cli.main(["service", "install", "--model", "small"])"""
    environ = {"HOME": str(place.home), "PATH": str(place.home)}
    line = [sys.executable, "-B", "-c", code]
    ended = subprocess.run(line, env=environ, check=False, capture_output=True, text=True)
    assert ended.returncode == cli.EX_OSERR, ended.stderr
    assert service.settings.read_bytes() == before
    assert [path.name for path in service.settings.parent.iterdir()] == ["server.env"]


def test_settings_behind_a_link_stay_there(place):
    """Somebody keeps them in a folder under version control."""
    service = service_unit.describe(place)
    kept = place.home / "dotfiles" / "server.env"
    kept.parent.mkdir()
    service.settings.parent.mkdir(parents=True)
    kept.write_text("")
    service.settings.symlink_to(kept)
    control.install(service, place, {"LOCALWHISPER_SERVER_PORT": "1"}, **Commands().act)
    assert service.settings.is_symlink()
    assert kept.read_text() == "LOCALWHISPER_SERVER_PORT=1\n"


HOSTILE = ("secrets.py", "json.py", "av.py", "numpy.py", "localwhisper_server.py")


@pytest.mark.parametrize("by", ["the folder it starts in", "PYTHONPATH"])
def test_the_service_imports_nothing_of_the_home_folder(tmp_path, by):
    """A user's own secrets.py, json.py or av.py there is not run by the service."""
    for name in HOSTILE:
        (tmp_path / name).write_text("raise SystemExit('imported from the home folder')")
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    if by == "PYTHONPATH":
        environ["PYTHONPATH"] = str(tmp_path)
    line = [sys.executable, *service_unit.RUN_SERVER, "--version"]
    done = subprocess.run(line, cwd=tmp_path, env=environ, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, "localwhisper-server"), done.stderr


HINTS = [
    ("linux", {}, "systemctl", "not with su or sudo"),
    ("linux", {"WSL_DISTRO_NAME": "Ubuntu"}, "systemctl", "/etc/wsl.conf"),
    ("darwin", {}, "bootstrap", "on the Mac's own screen"),
    ("win32", {}, "/Create", "Run as administrator"),
]


@pytest.mark.parametrize(("platform", "environ", "fails", "hint"), HINTS)
def test_a_manager_that_refuses_is_explained(tmp_path, platform, environ, fails, hint):
    """The files stay, the exit status tells, and the way out is named."""
    where = Place(platform, tmp_path, environ, "/opt/python", "me", 501)
    service, commands = service_unit.describe(where), Commands(fails)
    assert control.install(service, where, {}, **commands.act) == cli.EX_UNAVAILABLE
    assert service.file.exists()
    assert hint in commands.text


def test_wsl_is_kept_up(tmp_path):
    """Services do not keep WSL alive, so Windows is asked to."""
    where = Place("linux", tmp_path, {"WSL_DISTRO_NAME": "Debian"}, "/opt/python", "me", 1000)
    commands = Commands()
    control.install(service_unit.describe(where), where, {}, **commands.act)
    assert (
        'schtasks /Create /F /TN localwhisper-wsl /SC ONLOGON /TR "wsl.exe -d Debian --exec sleep infinity"'
        in commands.text
    )


def test_stopping_what_does_not_run_is_no_failure(tmp_path):
    """The first install has nothing to stop."""
    where = Place("darwin", tmp_path, {}, "/opt/python", "me", 501)
    assert control.install(service_unit.describe(where), where, {}, **Commands("bootout").act) == 0


def test_uninstalling_keeps_the_settings_and_can_be_repeated(place):
    """Gone is the service, not what the person wrote; the second time there is nothing to do."""
    service, commands = service_unit.describe(place), Commands("disable")
    control.install(service, place, {}, **Commands().act)
    assert control.uninstall(service, **commands.act) == 0
    assert not service.file.exists()
    assert service.settings.exists()
    assert commands.lines[-1] == "systemctl --user daemon-reload"
    again = Commands()
    assert control.uninstall(service, **again.act) == 0
    assert again.lines == []
    assert "nothing to remove" in again.text


def test_uninstalling_without_settings_names_none(tmp_path):
    """A Mac's agent, whose settings somebody took away."""
    where = Place("darwin", tmp_path, {}, "/opt/python", "me", 501)
    service, commands = service_unit.describe(where), Commands()
    control.install(service, where, {}, **Commands().act)
    service.settings.unlink()
    assert control.uninstall(service, **commands.act) == 0
    assert "kept" not in commands.text
    assert commands.lines == [f"launchctl bootout gui/501/{service_unit.LABEL}"]


def test_showing_what_is_not_installed(place):
    """One line, not systemd's."""
    commands = Commands()
    service = service_unit.describe(place)
    assert control.show(service, service.status, **commands.act) == cli.EX_UNAVAILABLE
    assert commands.lines == []
    control.install(service, place, {}, **Commands().act)
    assert control.show(service, service.logs, **commands.act) == 0
    assert commands.lines == ["journalctl --user --unit localwhisper.service --lines 100 --no-pager"]
    missing = Commands("journalctl", status=127)
    assert control.show(service, service.follow, **missing.act) == 127
    assert "no command 'journalctl'" in missing.text


def test_commands_are_run(tmp_path):
    """The real runner: an exit status, and 127 where there is no such command."""
    assert control.run([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert control.run([str(tmp_path / "none")]) == 127


def test_the_template_explains_every_setting_and_sets_none():
    """A newcomer finds each option in the file, with its default, and nothing is in force."""
    template = settings_file.template()
    for name in Settings.model_fields:
        assert f"\n#{settings_file.variable(name)}=" in template
    assert dotenv.dotenv_values(stream=io.StringIO(template)) == {}


def test_what_the_person_wrote_stays():
    """Only the named settings change: in their place, after their commented line, or at the end."""
    text = "# mine\nLOCALWHISPER_SERVER_PORT=1\n#LOCALWHISPER_SERVER_MODEL=auto\nHF_HOME=/data\n"
    changes = {"LOCALWHISPER_SERVER_PORT": "2", "LOCALWHISPER_SERVER_MODEL": "small", "X": "a b"}
    assert settings_file.merged(text, changes) == (
        "# mine\nLOCALWHISPER_SERVER_PORT=2\n#LOCALWHISPER_SERVER_MODEL=auto\nLOCALWHISPER_SERVER_MODEL=small\n"
        "HF_HOME=/data\nX='a b'\n"
    )


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_comment_stays_a_comment(separator):
    """What Python takes for the end of a line, and systemd and dotenv do not, begins no setting."""
    text = f"# see{separator}LOCALWHISPER_SERVER_PORT=1\r\nHF_HOME=/data\r\n"
    merged = settings_file.merged(text, {"X": "1"})
    assert dotenv.dotenv_values(stream=io.StringIO(merged)) == {"HF_HOME": "/data", "X": "1"}
    again = settings_file.merged(merged, {"LOCALWHISPER_SERVER_PORT": "2"})
    assert dotenv.dotenv_values(stream=io.StringIO(again))["LOCALWHISPER_SERVER_PORT"] == "2"


@pytest.mark.parametrize("value", ["plain", "a b", 'se$cret"`#', "${HOME}", '["10.0.0.0/8", "::1"]', "", "ключ", "#x"])
def test_values_survive_the_file(value):
    """What is written is what is read."""
    text = settings_file.merged(settings_file.template(), {"LOCALWHISPER_SERVER_API_KEY": value})
    assert dotenv.dotenv_values(stream=io.StringIO(text), interpolate=False) == {"LOCALWHISPER_SERVER_API_KEY": value}


@pytest.mark.parametrize("value", ["a\nb", "a'b", "a\\b"])
def test_values_that_readers_read_differently_are_refused(value):
    """Rather than a key that is right by hand and wrong as a service."""
    with pytest.raises(ValueError, match="LOCALWHISPER_SERVER_API_KEY"):
        settings_file.merged("", {"LOCALWHISPER_SERVER_API_KEY": value})


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Let the command line work in a home of its own, with no service manager."""
    for name in [name for name in os.environ if name.startswith(("LOCALWHISPER_", "XDG_", "WSL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def run(*arguments: str) -> int:
    """Run the command line and return its exit status."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return 0 if stop.value.code is None else int(stop.value.code)


def test_options_become_settings_of_the_service(home, capfd):
    """`service install --model small` is remembered; what was not named stays as it is."""
    assert run("service", "install", "--model", "small", "--api-key", "secret") == cli.EX_UNAVAILABLE
    values = dotenv.dotenv_values(home / ".config/localwhisper/server.env")
    assert values == {"LOCALWHISPER_SERVER_MODEL": "small", "LOCALWHISPER_SERVER_API_KEY": "secret"}
    assert "secret" not in capfd.readouterr().out
    run("service", "install", "--max-seconds", "60")
    values = dotenv.dotenv_values(home / ".config/localwhisper/server.env")
    assert values["LOCALWHISPER_SERVER_MAX_SECONDS"] == "60.0"
    assert values["LOCALWHISPER_SERVER_MODEL"] == "small"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["service", "--help"], 0, "service install"),
        (["service"], cli.EX_USAGE, "service install"),
        (["service", "logs", "--wrong"], cli.EX_USAGE, "service logs"),
        (["service", "status"], cli.EX_UNAVAILABLE, "no service is installed"),
        (["service", "logs"], cli.EX_UNAVAILABLE, "no service is installed"),
        (["service", "logs", "-f"], cli.EX_UNAVAILABLE, "no service is installed"),
        (["service", "uninstall"], 0, "nothing to remove"),
        (["service", "install", "--port", "x"], cli.EX_USAGE, "--port"),
        (["service", "install", "--api-key", "a'b"], cli.EX_USAGE, "LOCALWHISPER_SERVER_API_KEY"),
        (["service", "install", "--help"], 0, "written into the service's settings file"),
        (["doctor", "--help"], 0, "--json"),
        (["--help"], 0, "doctor [--json]"),
        (["--env-file", "none"], cli.EX_USAGE, "there is no file none"),
    ],
)
def test_the_command_line_answers(home, capfd, arguments, status, words):
    """Help where it is asked for, usage and its exit status where the words are wrong."""
    assert run(*arguments) == status
    answer = capfd.readouterr()
    assert words in answer.out + answer.err


def test_a_platform_without_services_is_one_line(home, capfd, monkeypatch):
    """No traceback on a system nobody thought of."""
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert run("service", "status") == cli.EX_UNAVAILABLE
    assert "freebsd14" in capfd.readouterr().err


def test_a_home_that_cannot_be_written_is_one_line(home, capfd):
    """The file and the reason, and sysexits' number for it."""
    (home / ".config").write_text("in the way")
    assert run("service", "install") == cli.EX_OSERR
    assert ".config" in capfd.readouterr().err


def test_settings_come_from_the_env_file_but_the_environment_wins(home, monkeypatch):
    """As under systemd; other programs' variables in it count, too."""
    file = home / "server.env"
    file.write_text("LOCALWHISPER_SERVER_MODEL=small\nLOCALWHISPER_SERVER_PORT=5055\nHF_HOME=/data\n")
    monkeypatch.setenv("LOCALWHISPER_SERVER_PORT", "5066")
    for name in ("LOCALWHISPER_SERVER_MODEL", "HF_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    served: list[Settings] = []
    monkeypatch.setattr(cli, "_serve", served.append)
    cli.main(["--env-file", str(file), "--queue", "3"])
    assert (served[0].model, served[0].port, served[0].queue) == ("small", 5066, 3)
    assert os.environ["HF_HOME"] == "/data"


def test_doctor_looks_for_the_service(home, monkeypatch):
    """Without options, the server in question is the one that was installed."""
    run("service", "install", "--port", "5077")
    monkeypatch.setenv("LOCALWHISPER_SERVER_PORT", "")
    monkeypatch.delenv("LOCALWHISPER_SERVER_PORT")
    looked: list[tuple[int, bool]] = []

    def examine(_machine, settings, *, as_json, **_streams):
        looked.append((settings.port, as_json))
        return 1

    monkeypatch.setattr(cli.doctor, "run", examine)
    assert run("doctor", "--json") == 1
    assert looked == [(5077, True)]
    monkeypatch.delenv("LOCALWHISPER_SERVER_PORT")
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert run("doctor") == 1
    assert looked[1] == (5000, False)
