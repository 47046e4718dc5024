"""What `doctor` knows of a machine, and the real one: the only part of it that looks at files, commands and sockets.

The checks are functions of a `Machine`; a test gives them one with an RTX 5090, a broken driver or no WSL at all.
"""

import contextlib
import glob
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ifaddr

COMMAND_SECONDS = 20.0
# Importing CTranslate2 and asking the driver; a driver that hangs is found out by this.
PROBE_SECONDS = 120.0
HEALTH_SECONDS = 3.0
MAX_TEXT = 1 << 20


@dataclass(frozen=True, slots=True)
class Output:
    """How a command ended; `status` is negative for a signal, None when it took too long."""

    status: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts, and functions that look for more. Paths are strings, since they may be another system's.

    `version` gives a package's version or None. `run` gives None where there is no such command. `probe` starts
    `localwhisper_server.operations.doctor.probe` and gives what it printed, or None and the way it ended. `bind` gives why an
    address cannot be listened on, or "". `health` gives what answers there: a body, {} for something else, or None.
    """

    platform: str
    architecture: str
    python: tuple[int, ...]
    libc: tuple[str, str]
    environ: Mapping[str, str]
    hostname: str
    addresses: Sequence[str]
    now: float
    installed_at: float
    version: Callable[[str], str | None]
    read: Callable[[str], str | None]
    find: Callable[[str], list[str]]
    which: Callable[[str], str | None]
    run: Callable[[Sequence[str]], Output | None]
    probe: Callable[[Mapping[str, Any]], tuple[dict[str, Any] | None, Output]]
    bind: Callable[[str, int], str]
    health: Callable[[str], dict[str, Any] | None]
    free_bytes: Callable[[str], int | None]
    bits: int = field(default=64)


def this_machine(environ: Mapping[str, str]) -> Machine:
    """Return the machine that this runs on."""
    return Machine(
        platform=sys.platform,
        architecture=platform.machine(),
        python=sys.version_info[:3],
        libc=platform.libc_ver(),
        environ=environ,
        hostname=socket.gethostname(),
        addresses=_addresses(),
        now=time.time(),
        installed_at=Path(__file__).stat().st_mtime,
        version=_version,
        read=_read,
        find=_find,
        which=shutil.which,
        run=_run,
        probe=lambda asked: _probe(asked, environ),
        bind=_bind,
        health=_health,
        free_bytes=_free_bytes,
        bits=64 if sys.maxsize > 2**32 else 32,
    )


def _addresses() -> list[str]:
    ips = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    return [ip if isinstance(ip, str) else ip[0] for ip in ips]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _find(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern))  # noqa: PTH207 - whole paths, which Path.glob does not take


def _read(path: str) -> str | None:
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as stream:
            return stream.read(MAX_TEXT)
    except OSError:
        return None


def _run(line: Sequence[str]) -> Output | None:
    return _finish(line, COMMAND_SECONDS, None)


def _finish(line: Sequence[str], seconds: float, environ: Mapping[str, str] | None) -> Output | None:
    try:
        finished = subprocess.run(  # noqa: S603 - lines that the checks wrote
            list(line),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            env=None if environ is None else dict(environ),
        )
    except FileNotFoundError:
        return None
    except OSError as failure:
        return Output(126, str(failure))
    except subprocess.TimeoutExpired:
        return Output(None, "")
    # WSL's Windows commands answer in UTF-16.
    encoding = "utf-16-le" if b"\0" in finished.stdout[:64] else "utf-8"
    return Output(finished.returncode, finished.stdout.decode(encoding, errors="replace"))


def _probe(asked: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any] | None, Output]:
    # Nothing is downloaded to see what is there.
    child = {**environ, "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-P", "-m", "localwhisper_server.operations.doctor.probe", json.dumps(asked)]
    output = _finish(line, PROBE_SECONDS, child) or Output(127, "")
    for text in reversed(output.text.splitlines()):
        with contextlib.suppress(ValueError):
            answer = json.loads(text)
            if isinstance(answer, dict):
                return answer, output
    return None, output


def _bind(host: str, port: int) -> str:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listening:
            if os.name == "posix":  # as the server does; on Windows it would take over somebody else's port
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1)
    except OSError as failure:
        return failure.strerror or str(failure)
    return ""


def _health(url: str) -> dict[str, Any] | None:
    # A proxy has no business between a machine and itself, and the certificate is for its name, not for the loopback.
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked)
    )
    try:
        with opener.open(url, timeout=HEALTH_SECONDS) as answer:
            body = json.loads(answer.read(MAX_TEXT))
    except urllib.error.HTTPError:
        return {}
    except (OSError, ValueError) as failure:
        return {} if isinstance(failure, ValueError) else None
    return body if isinstance(body, dict) and "ready" in body else {}


def _free_bytes(folder: str) -> int | None:
    path = Path(folder).expanduser().absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
