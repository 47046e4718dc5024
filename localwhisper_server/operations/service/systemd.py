"""The server as a systemd service of one user: the unit's text, and the steps that install, show and remove it.

Every step can be repeated. Other service managers have none of this: a user starts the server there by other means.
"""

import getpass
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

from localwhisper_server.operations.host import is_wsl
from localwhisper_server.operations.service import settings_file
from localwhisper_server.operations.watchdog import WATCHDOG_SECONDS

NAME = "localwhisper"
UNIT = f"{NAME}.service"
RESTART_SECONDS = 5
# A first start may download 3 GB of weights before the server is ready.
START_SECONDS = 3600
# Longer than the server's own --drain of 30 s.
STOP_SECONDS = 45
# -E and -P: import nothing from PYTHONPATH or from the folder that the service starts in, which is the home folder.
RUN_SERVER = ("-E", "-P", "-m", "localwhisper_server")
# The exit status that a shell gives for a command that does not exist.
NO_SUCH_COMMAND = 127

Run = Callable[[Sequence[str]], int]
Say = Callable[[str], None]


def run_command(line: Sequence[str]) -> int:
    """Run a command on this terminal and return its exit status; NO_SUCH_COMMAND if it does not exist."""
    try:
        return subprocess.run(list(line), check=False).returncode  # noqa: S603 - the lines of this module
    except FileNotFoundError:
        return NO_SUCH_COMMAND


def settings_path(environ: Mapping[str, str], home: Path) -> Path:
    """Return the file that holds the settings of a user's service, whether or not it exists."""
    return _config(environ, home) / NAME / "server.env"


def _config(environ: Mapping[str, str], home: Path) -> Path:
    return Path(environ.get("XDG_CONFIG_HOME") or home / ".config")


class Service:
    """The service of one user. `run` runs a command and returns its exit status; `say` prints a line.

    Each method returns an exit status for the program.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        home: Path,
        python: str = sys.executable,
        user: str | None = None,
        wsl: bool | None = None,
        run: Run = run_command,
        say: Say = print,
    ) -> None:
        self._python = python
        self._user = user or getpass.getuser()
        self._wsl = is_wsl() if wsl is None else wsl
        self._run = run
        self._say = say
        self.unit = _config(environ, home) / "systemd" / "user" / UNIT
        self.settings = settings_path(environ, home)

    def install(self, changes: Mapping[str, str]) -> int:
        """Write the unit and the settings, and start the service. `changes` are settings to write, by variable.

        Raises:
            ValueError: a setting cannot be written.
            OSError: a file cannot.

        """
        before = self.settings.read_text(encoding="utf-8") if self.settings.exists() else settings_file.template()
        settings = settings_file.merged(before, changes) if changes else before
        self._write(self.settings, settings, mode=0o600)  # it may hold the server's key
        self._write(self.unit, unit_text(self._python, self.settings), mode=0o644)
        for line in (
            ("systemctl", "--user", "daemon-reload"),
            ("systemctl", "--user", "enable", UNIT),
            # Do not wait: the unit is ready when its model is, which may have to be downloaded first.
            ("systemctl", "--user", "restart", "--no-block", UNIT),
        ):
            if self._run(line) != 0:
                self._say(f"\nThe files are written, but systemd did not take them: '{' '.join(line)}' failed.")
                self._say("The usual reasons are in docs/troubleshooting.md")
                return os.EX_UNAVAILABLE
        self._say(f"started {NAME}; from now on it starts by itself")
        self._say(f"settings   {self.settings}")
        self._say("status     localwhisper-server service status")
        self._say("log        localwhisper-server service logs --follow")
        self._say("check      localwhisper-server doctor")
        if not Path("/var/lib/systemd/linger", self._user).exists():
            self._say("\nIt stops when you log out. To keep it running from boot on:")
            self._say(f"    sudo loginctl enable-linger {self._user}")
        if self._wsl:
            self._say("\nWindows stops WSL when its last window closes; docs/wsl2.md says how to keep it running.")
        return 0

    def uninstall(self) -> int:
        """Stop the service and remove its unit; the settings stay.

        Raises:
            OSError: the unit cannot be removed.

        """
        if not self.unit.exists():
            self._say("nothing to remove: no service is installed")
            return 0
        # These fail if the service does not run, which is no trouble.
        self._run(("systemctl", "--user", "disable", "--now", UNIT))
        self._run(("systemctl", "--user", "reset-failed", UNIT))
        self.unit.unlink()
        self._say(f"removed {self.unit}")
        self._run(("systemctl", "--user", "daemon-reload"))
        if self.settings.exists():
            self._say(f"kept your settings: {self.settings}")
        return 0

    def status(self) -> int:
        """Show what systemd says about the service."""
        return self._show("systemctl", "--user", "status", "--no-pager", UNIT)

    def logs(self, *, follow: bool = False) -> int:
        """Show the last 100 lines of the log; `follow` also shows each new line."""
        return self._show(
            "journalctl", "--user", "--unit", UNIT, "--lines", "100", "--follow" if follow else "--no-pager"
        )

    def _show(self, *line: str) -> int:
        if not self.unit.exists():
            self._say("no service is installed: localwhisper-server service install")
            return os.EX_UNAVAILABLE
        status = self._run(line)
        if status == NO_SUCH_COMMAND:
            self._say(f"this machine has no command '{line[0]}'")
        return status

    def _write(self, path: Path, text: str, *, mode: int) -> None:
        known = path.exists()
        if known and path.read_text(encoding="utf-8") == text:
            path.chmod(mode)
            self._say(f"unchanged {path}")
            return
        _write_atomically(path, text, mode=mode)
        self._say(f"{'updated' if known else 'wrote'} {path}")


def unit_text(python: str, settings: PurePath) -> str:
    """Return the text of a user unit that runs the server with the interpreter `python`.

    Left out on purpose: PrivateDevices hides the GPU. MemoryDenyWriteExecute stops the code that CUDA and oneDNN
    compile at run time. PrivateTmp and ProtectSystem need user namespaces, which a user's systemd may not have
    (Ubuntu 24.04).
    """
    return f"""\
[Unit]
Description=OpenAI's speech-to-text API on this machine (localwhisper)
# Try for ever: a graphics driver that is being updated comes back.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
SyslogIdentifier=localwhisper
ExecStart={_systemd_word(python)} {" ".join(RUN_SERVER)}
EnvironmentFile=-{_systemd_path(settings)}
Restart=always
RestartSec={RESTART_SECONDS}
# A wrong setting stays wrong at the next start.
RestartPreventExitStatus={os.EX_USAGE} {os.EX_CONFIG}
TimeoutStartSec={START_SECONDS}
WatchdogSec={WATCHDOG_SECONDS}
# SIGTERM to the server alone, which finishes its requests; then SIGKILL to all that is left.
KillMode=mixed
TimeoutStopSec={STOP_SECONDS}
# If a decoding process runs out of memory, the server starts another one and need not stop.
OOMPolicy=continue
LimitCORE=0
UMask=0077
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""


def _systemd_path(path: PurePath) -> str:
    # EnvironmentFile takes the rest of the line: only % needs an escape.
    return str(path).replace("%", "%%")


def _systemd_word(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word else word


def _write_atomically(path: Path, text: str, *, mode: int) -> None:
    # Write a second file and rename it: a write that is cut off loses nothing, and others can never read the key,
    # whatever the mode of the old file was.
    target = path.resolve()  # keep a symbolic link: the user may keep the settings elsewhere
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(mode)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
