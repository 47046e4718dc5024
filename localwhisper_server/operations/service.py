"""The server as a systemd service of one user: its unit, its settings file, and the steps that install and remove it.

Every step can be repeated. Users edit the settings file, whose NAME=value lines both systemd and the server read: all
that they wrote stays, comments included, and only the settings that change are written.
"""

import getpass
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

from localwhisper_server.operations.host import is_wsl
from localwhisper_server.operations.watchdog import WATCHDOG_SECONDS
from localwhisper_server.settings import Settings, variable, written

NAME = "localwhisper"
UNIT = f"{NAME}.service"
# A first start may download 3 GB of weights before the server is ready.
START_SECONDS = 3600
# Longer than the server's own --drain of 30 s.
STOP_SECONDS = 45
# -E and -P: import nothing from PYTHONPATH or from the folder that the service starts in, which is the home folder.
RUN_SERVER = ("-E", "-P", "-m", "localwhisper_server")
STATUS = ("systemctl", "--user", "status", "--no-pager", UNIT)
LOGS = ("journalctl", "--user", "--unit", UNIT, "--lines", "100")
# The exit status that a shell gives for a command that does not exist.
NO_SUCH_COMMAND = 127

_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]*")
# systemd and python-dotenv read these differently, even between single quotes.
_UNSAFE = re.compile(r"[\x00-\x1f'\\]")

_HEAD = """\
# Settings of localwhisper-server as a service. To change one, remove the # in front of it. Then run this command,
# which restarts the service:
#     localwhisper-server service install
# Other variables can be set here as well: HF_HOME, HF_ENDPOINT, CUDA_VISIBLE_DEVICES.
"""
_STARTED = """\
started localwhisper; from now on it starts by itself
settings   {settings}
status     localwhisper-server service status
log        localwhisper-server service logs --follow
check      localwhisper-server doctor"""


def run_command(line: Sequence[str]) -> int:
    """Run a command on this terminal and return its exit status; NO_SUCH_COMMAND if it does not exist."""
    try:
        return subprocess.run(list(line), check=False).returncode  # noqa: S603 - the lines of this module
    except FileNotFoundError:
        return NO_SUCH_COMMAND


def settings_path(environ: Mapping[str, str], home: Path) -> Path:
    """Return the file that holds the settings of a user's service, whether or not it exists."""
    return Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / NAME / "server.env"


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
        wsl: bool | None = None,
        run: Callable[[Sequence[str]], int] = run_command,
        say: Callable[[str], None] = print,
    ) -> None:
        self._python = python
        self._wsl = is_wsl() if wsl is None else wsl
        self._run = run
        self._say = say
        self.settings = settings_path(environ, home)
        self.unit = self.settings.parents[1] / "systemd" / "user" / UNIT

    def install(self, changes: Mapping[str, str]) -> int:
        """Write the unit and the settings, and start the service. `changes` are settings to write, by variable.

        Raises:
            ValueError: a setting cannot be written.
            OSError: a file cannot.

        """
        before = self.settings.read_text(encoding="utf-8") if self.settings.exists() else template()
        # For the user alone: the server's key may be in it.
        self._write(self.settings, merged(before, changes) if changes else before, mode=0o600)
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
        self._say(_STARTED.format(settings=self.settings))
        if not Path("/var/lib/systemd/linger", getpass.getuser()).exists():
            self._say("\nIt stops when you log out. To keep it running from boot on:")
            self._say("    sudo loginctl enable-linger $USER")
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
        self._run(("systemctl", "--user", "daemon-reload"))
        self._say(f"removed {self.unit}; your settings stay in {self.settings}")
        return 0

    def show(self, *line: str) -> int:
        """Run a command that shows the service."""
        if not self.unit.exists():
            self._say("no service is installed: localwhisper-server service install")
            return os.EX_UNAVAILABLE
        status = self._run(line)
        if status == NO_SUCH_COMMAND:
            self._say(f"this machine has no command '{line[0]}'")
        return status

    def _write(self, path: Path, text: str, *, mode: int) -> None:
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
        self._say(f"wrote {path}")


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
EnvironmentFile=-{str(settings).replace("%", "%%")}
Restart=always
RestartSec=5
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


def _systemd_word(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word else word


def template() -> str:
    """Return a settings file that explains each setting and sets none."""
    blocks = [_HEAD]
    for name, field in Settings.model_fields.items():
        comment = "\n".join(f"# {line}" for line in textwrap.wrap(field.description or "", 110))
        blocks.append(f"{comment}\n#{variable(name)}={written(field.default)}\n")
    return "\n".join(blocks)


def merged(text: str, changes: Mapping[str, str]) -> str:
    """Return `text` with the variables in `changes` set: in their lines, or at the end.

    Raises:
        ValueError: systemd and python-dotenv would read a value differently.

    """
    # Not str.splitlines, which also splits at separators such as U+2028 that may be in a comment.
    lines = re.split(r"\r\n|\n|\r", text)
    if not lines[-1]:
        lines.pop()
    for name, value in changes.items():
        if _UNSAFE.search(value):
            raise ValueError(f"{name} cannot hold a single quote, a backslash or a line break here.")
        assignment = f"{name}={value}" if _PLAIN.fullmatch(value) else f"{name}='{value}'"
        # systemd and dotenv use the last one of several.
        places = [number for number, line in enumerate(lines) if re.match(rf"\s*{name}\s*=", line)] or [len(lines)]
        lines[places[-1] : places[-1] + 1] = [assignment]
    return "\n".join(lines) + "\n"
