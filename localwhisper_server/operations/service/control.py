"""Installing, showing and removing the service that `service_unit` describes; every step can be repeated."""

import getpass
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localwhisper_server.operations.service import settings_file
from localwhisper_server.operations.service.unit import NAME, Command, Place, Service

Run = Callable[[Sequence[str]], int]
Say = Callable[[str], None]

EX_UNAVAILABLE = 69


def this_place(environ: Mapping[str, str]) -> Place:
    """Return where a service of this user, run by this Python, would live."""
    uid = os.getuid() if hasattr(os, "getuid") else 0
    return Place(sys.platform, Path.home(), environ, sys.executable, getpass.getuser(), uid)


def run(line: Sequence[str]) -> int:
    """Run a command with this terminal's output and return its exit status; 127 where there is no such command."""
    try:
        return subprocess.run(list(line), check=False).returncode  # noqa: S603 - lines that service_unit wrote
    except FileNotFoundError:
        return 127


def install(service: Service, place: Place, changes: Mapping[str, str], *, run: Run, say: Say) -> int:
    """Write the files, start the service and return an exit status. `changes` are settings to write down, by variable.

    Raises:
        ValueError: a setting cannot be written.
        OSError: a file cannot.

    """
    before = service.settings.read_text(encoding="utf-8") if service.settings.exists() else settings_file.template()
    settings = settings_file.merged(before, changes) if changes else before
    # It may hold the key that callers must send.
    _write(service.settings, settings.encode(), say, mode=0o600)
    _write(service.file, service.content, say, mode=0o644)
    failed = _run_all(service.install, run)
    if failed is not None:
        say("")
        say(f"The files are in place, but {service.manager} did not take them ('{' '.join(failed)}' failed).")
        for line in _why_not(service, place):
            say(line)
        return EX_UNAVAILABLE
    say(f"started {NAME}; it starts by itself from now on")
    for line in _next_steps(service, place):
        say(line)
    return 0


def uninstall(service: Service, *, run: Run, say: Say) -> int:
    """Stop the service and remove its file; the settings stay. Returns an exit status.

    Raises:
        OSError: the file cannot be removed.

    """
    if not service.file.exists():
        say("nothing to remove: no service is installed")
        return 0
    _run_all(service.uninstall, run)
    service.file.unlink()
    say(f"removed {service.file}")
    if service.manager == "systemd":
        _run_all([Command(("systemctl", "--user", "daemon-reload"), optional=True)], run)
    if service.settings.exists():
        say(f"kept your settings: {service.settings}")
    return 0


def show(service: Service, what: Sequence[str], *, run: Run, say: Say) -> int:
    """Run one of the commands that only show something, if there is a service to show. Returns an exit status."""
    if not service.file.exists():
        say("no service is installed: localwhisper-server service install")
        return EX_UNAVAILABLE
    status = run(what)
    if status == 127:  # noqa: PLR2004 - a shell's number for a command that is not there
        say(f"there is no command '{what[0]}' on this machine")
    return status


def _write(path: Path, content: bytes, say: Say, *, mode: int) -> None:
    known = path.exists()
    if known and path.read_bytes() == content:
        path.chmod(mode)
        say(f"unchanged {path}")
        return
    target = path.resolve()  # a link to a folder of settings stays one
    target.parent.mkdir(parents=True, exist_ok=True)
    # A second file takes the place of the first: a write that is cut off loses nothing, and a key is at no time
    # readable by others, whatever the mode of the old file.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    written = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written.chmod(mode)
        written.replace(target)
    finally:
        written.unlink(missing_ok=True)
    say(f"{'updated' if known else 'wrote'} {path}")


def _run_all(commands: Sequence[Command], run: Run) -> Sequence[str] | None:
    """Run commands in order and return the first that failed and must not."""
    for command in commands:
        if run(command.line) != 0 and not command.optional:
            return command.line
    return None


def _why_not(service: Service, place: Place) -> list[str]:
    if service.manager == "systemd" and _is_wsl(place):
        return [
            "WSL starts systemd only where it is told to. Put these two lines into /etc/wsl.conf:",
            "    [boot]",
            "    systemd=true",
            "then, in Windows: wsl --shutdown, open Ubuntu again, and repeat this command.",
        ]
    if service.manager == "systemd":
        return [
            "A user's services need a login session of that user: log in directly or by ssh, not with su or sudo.",
            "In a container there is no systemd; start localwhisper-server itself there.",
        ]
    if service.manager == "Task Scheduler":
        return ["Repeat this command in a terminal that was opened with 'Run as administrator'."]
    return ["Repeat this command in a terminal on the Mac's own screen: launch agents need a logged-in user."]


def _next_steps(service: Service, place: Place) -> list[str]:
    steps = [
        f"settings   {service.settings}",
        "status     localwhisper-server service status",
        "log        localwhisper-server service logs --follow",
        "check      localwhisper-server doctor",
    ]
    if service.manager == "systemd" and not Path("/var/lib/systemd/linger", place.user).exists():
        steps += [
            "",
            "It stops when you log out. To let it run from boot on, whoever is logged in:",
            f"    sudo loginctl enable-linger {place.user}",
        ]
    if service.manager == "systemd" and _is_wsl(place):
        distribution = place.environ.get("WSL_DISTRO_NAME", "Ubuntu")
        keep_up = (
            f'    schtasks /Create /F /TN {NAME}-wsl /SC ONLOGON /TR "wsl.exe -d {distribution} --exec sleep infinity"'
        )
        steps += [
            "",
            "Windows stops WSL when its last window closes, services or not. To keep it up, paste into PowerShell",
            "(as administrator) once:",
            keep_up,
        ]
    return steps


def _is_wsl(place: Place) -> bool:
    return "WSL_DISTRO_NAME" in place.environ
