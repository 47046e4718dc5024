"""The server as a service of the machine: systemd's, launchd's and Task Scheduler's words for the same wish.

Pure: a `Service` says which file goes where and which commands start, stop and show it; `service_control` does it.
"""

import plistlib
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from localwhisper_server.operations.watchdog import WATCHDOG_SECONDS

NAME = "localwhisper"
LABEL = f"lan.{NAME}.server"
RESTART_SECONDS = 5
# A first start may download 3 GB of weights before the server says that it is ready.
START_SECONDS = 3600
# Over the server's own time to finish what runs.
STOP_SECONDS = 45
# A wrong setting is wrong the next time as well (sysexits.h: EX_USAGE, EX_CONFIG); everything else may heal.
EX_USAGE = 64
EX_CONFIG = 78
# Python imports nothing that lies in the folder it is started in, which is the home folder, or in PYTHONPATH.
RUN_SERVER = ("-E", "-P", "-m", "localwhisper_server")
TASK_NAMESPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"


class Unsupported(Exception):
    """This platform has none of the three; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command line. One that is `optional` may fail: stopping what does not run."""

    line: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """What a service manager needs: its file, the settings file beside it, and its commands."""

    manager: str
    file: Path
    content: bytes
    settings: Path
    install: tuple[Command, ...]
    uninstall: tuple[Command, ...]
    status: tuple[str, ...]
    logs: tuple[str, ...]
    follow: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the service shall live: whose it is, which Python runs it."""

    platform: str
    home: Path
    environ: Mapping[str, str]
    python: str
    user: str
    uid: int


def describe(place: Place) -> Service:
    """Return the service for a platform.

    Raises:
        Unsupported: there is no service manager known for it.

    """
    builders = {"linux": _systemd, "darwin": _launchd, "win32": _task}
    if place.platform not in builders:
        raise Unsupported(f"No service manager is known for {place.platform}; start localwhisper-server yourself.")
    return builders[place.platform](place)


def _systemd(place: Place) -> Service:
    config = Path(place.environ.get("XDG_CONFIG_HOME") or place.home / ".config")
    settings = config / NAME / "server.env"
    unit = f"{NAME}.service"
    systemctl = ("systemctl", "--user")
    return Service(
        manager="systemd",
        file=config / "systemd" / "user" / unit,
        content=systemd_unit(place.python, settings).encode(),
        settings=settings,
        install=(
            Command((*systemctl, "daemon-reload")),
            Command((*systemctl, "enable", unit)),
            # Not waited for: the unit is ready when its model is, and that may have to be downloaded.
            Command((*systemctl, "restart", "--no-block", unit)),
        ),
        uninstall=(
            Command((*systemctl, "disable", "--now", unit), optional=True),
            Command((*systemctl, "reset-failed", unit), optional=True),
        ),
        status=(*systemctl, "status", "--no-pager", unit),
        logs=("journalctl", "--user", "--unit", unit, "--lines", "100", "--no-pager"),
        follow=("journalctl", "--user", "--unit", unit, "--lines", "100", "--follow"),
    )


def systemd_unit(python: str, settings: PurePath) -> str:
    """Return the text of a user unit that runs the server under `python`.

    Left out on purpose: PrivateDevices hides the GPU; MemoryDenyWriteExecute stops what CUDA and oneDNN compile while
    they run; PrivateTmp and ProtectSystem need user namespaces, which a user's manager may not have (Ubuntu 24.04).
    """
    return f"""\
[Unit]
Description=OpenAI's speech-to-text API on this machine (localwhisper)
# Never give up: a graphics driver that is being updated comes back.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
SyslogIdentifier=localwhisper
ExecStart={_systemd_word(python)} {" ".join(RUN_SERVER)}
EnvironmentFile=-{_systemd_path(settings)}
Restart=always
RestartSec={RESTART_SECONDS}
# A wrong setting stays wrong however often it is tried.
RestartPreventExitStatus={EX_USAGE} {EX_CONFIG}
TimeoutStartSec={START_SECONDS}
WatchdogSec={WATCHDOG_SECONDS}
# The server is told to stop and finishes what runs; what is left of it after that is killed.
KillMode=mixed
TimeoutStopSec={STOP_SECONDS}
# A decoder that runs out of memory is the server's to replace, not a reason to stop it.
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
    # Settings that name a file take the rest of the line; only specifiers mean something in it.
    return str(path).replace("%", "%%")


def _systemd_word(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word else word


def _launchd(place: Place) -> Service:
    settings = place.home / "Library" / "Application Support" / NAME / "server.env"
    log = place.home / "Library" / "Logs" / f"{NAME}.log"
    errors = log.with_name(f"{NAME}-errors.log")
    file = place.home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    domain = f"gui/{place.uid}"
    stop = Command(("launchctl", "bootout", f"{domain}/{LABEL}"), optional=True)
    return Service(
        manager="launchd",
        file=file,
        content=launchd_plist(place.python, settings, log, errors),
        settings=settings,
        install=(stop, Command(("launchctl", "bootstrap", domain, str(file)))),
        uninstall=(stop,),
        status=("launchctl", "print", f"{domain}/{LABEL}"),
        logs=("tail", "-n", "100", str(errors), str(log)),
        follow=("tail", "-n", "100", "-F", str(errors), str(log)),
    )


def launchd_plist(python: str, settings: PurePath, log: PurePath, errors: PurePath) -> bytes:
    """Return the property list of a user's launch agent.

    launchd never shortens a file, so the server keeps its `log` itself; to `errors` goes what it says before it can.
    """
    options = ["--env-file", str(settings), "--quiet", "--log-file", str(log)]
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": [python, *RUN_SERVER, *options],
            "RunAtLoad": True,
            "KeepAlive": True,
            "ThrottleInterval": RESTART_SECONDS,
            "ExitTimeOut": STOP_SECONDS,
            # "Background" would let the system slow down what somebody waits for.
            "ProcessType": "Interactive",
            "StandardOutPath": str(errors),
            "StandardErrorPath": str(errors),
            "Umask": 0o077,
        },
        sort_keys=False,
    )


def _task(place: Place) -> Service:
    folder = Path(place.environ.get("LOCALAPPDATA") or place.home / "AppData" / "Local") / NAME
    settings, log, file = folder / "server.env", folder / "server.log", folder / "task.xml"
    domain = place.environ.get("USERDOMAIN")
    user = f"{domain}\\{place.user}" if domain else place.user
    quoted = [str(path).replace("'", "''") for path in (log, log.with_name("errors.log"))]
    show = "Get-Content -Tail 100 -LiteralPath"
    powershell = ("powershell", "-NoProfile", "-Command")
    return Service(
        manager="Task Scheduler",
        file=file,
        content=task_xml(place.python, settings, log, user),
        settings=settings,
        install=(
            Command(("schtasks", "/End", "/TN", NAME), optional=True),
            Command(("schtasks", "/Create", "/TN", NAME, "/XML", str(file), "/F")),
            Command(("schtasks", "/Run", "/TN", NAME)),
        ),
        uninstall=(
            Command(("schtasks", "/End", "/TN", NAME), optional=True),
            Command(("schtasks", "/Delete", "/TN", NAME, "/F"), optional=True),
        ),
        status=("schtasks", "/Query", "/TN", NAME, "/V", "/FO", "LIST"),
        logs=(*powershell, f"{show} '{quoted[1]}','{quoted[0]}'"),
        follow=(*powershell, f"{show} '{quoted[0]}' -Wait"),
    )


def task_xml(python: str, settings: PurePath, log: PurePath, user: str) -> bytes:
    """Return the XML of a task that runs from boot on, as `user`, whether or not they are logged on."""
    ET.register_namespace("", TASK_NAMESPACE)
    task = ET.Element(f"{{{TASK_NAMESPACE}}}Task", version="1.2")
    _add(task, {"RegistrationInfo": {"Description": "OpenAI's speech-to-text API on this machine (localwhisper)"}})
    _add(task, {"Triggers": {"BootTrigger": {"Enabled": "true"}}})
    principal = {"UserId": user, "LogonType": "S4U", "RunLevel": "LeastPrivilege"}
    _add(task, {"Principals": {"Principal": principal}})
    _add(
        task,
        {
            "Settings": {
                "MultipleInstancesPolicy": "IgnoreNew",
                "DisallowStartIfOnBatteries": "false",
                "StopIfGoingOnBatteries": "false",
                # Without these, a task is stopped after three days and waits for an idle machine.
                "ExecutionTimeLimit": "PT0S",
                "RunOnlyIfIdle": "false",
                # The shortest that Task Scheduler knows.
                "RestartOnFailure": {"Interval": "PT1M", "Count": "999"},
            }
        },
    )
    # Tasks have no log of their own; cmd takes everything between the outer quotes. What the server says before it can
    # keep its log is in the other file.
    errors = log.with_name("errors.log")
    options = f'--env-file "{settings}" --quiet --log-file "{log}"'
    line = f'""{python}" {" ".join(RUN_SERVER)} {options} >> "{errors}" 2>&1"'
    _add(task, {"Actions": {"Exec": {"Command": "cmd.exe", "Arguments": f"/d /s /c {line}"}}})
    ET.indent(task)
    return bytes(ET.tostring(task, encoding="utf-16", xml_declaration=True))


def _add(parent: ET.Element, children: Mapping[str, Any]) -> None:
    for name, value in children.items():
        child = ET.SubElement(parent, f"{{{TASK_NAMESPACE}}}{name}")
        if isinstance(value, str):
            child.text = value
        else:
            _add(child, value)
