"""What `doctor` knows about a machine, and how it finds it out: by files, commands and sockets.

The checks are functions of a `Machine`, so that a test can give them one with an RTX 5090 or a broken driver.

This module is also a program: `python -m localwhisper_server.operations.doctor.machine JSON` prints, as one line of
JSON, what CTranslate2 finds. A broken driver or library ends or hangs that process, and `doctor` survives.
"""

import contextlib
import glob
import importlib.metadata
import json
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localwhisper_server.operations.host import MAX_TEXT, interface_addresses, read_text

COMMAND_SECONDS = 20.0
# Enough to import CTranslate2 and to ask the driver; after that, the driver hangs.
PROBE_SECONDS = 120.0
HEALTH_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a command, and its exit status: negative for a signal, None if it took too long."""

    status: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts, and functions that find out more. Paths are strings, because a test's are another system's.

    `version` returns a package's version or None. `run` returns None if the command does not exist. `probe` runs this
    module as a program: what it printed, or None, and how it ended. `bind` returns why an address cannot be listened
    on, or "". `health` returns the body of a server's /health, {} if another program answers, or None.
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
    bits: int = 64


def this_machine(environ: Mapping[str, str]) -> Machine:
    """Return the machine that this program runs on."""
    return Machine(
        platform=sys.platform,
        architecture=platform.machine(),
        python=sys.version_info[:3],
        libc=platform.libc_ver(),
        environ=environ,
        hostname=socket.gethostname(),
        addresses=interface_addresses(),
        now=time.time(),
        installed_at=Path(__file__).stat().st_mtime,
        version=_version,
        read=read_text,
        find=lambda pattern: sorted(glob.glob(pattern)),  # noqa: PTH207 - Path.glob takes no absolute pattern
        which=shutil.which,
        run=run_command,
        probe=lambda asked: _probe(asked, environ),
        bind=_bind,
        health=_health,
        free_bytes=_free_bytes,
        bits=64 if sys.maxsize > 2**32 else 32,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run_command(
    line: Sequence[str], *, seconds: float = COMMAND_SECONDS, environ: Mapping[str, str] | None = None
) -> Output | None:
    """Run a command and return its output, standard error included; None if it does not exist."""
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
    # Windows' commands in WSL print UTF-16.
    encoding = "utf-16-le" if b"\0" in finished.stdout[:64] else "utf-8"
    return Output(finished.returncode, finished.stdout.decode(encoding, errors="replace"))


def _probe(asked: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any] | None, Output]:
    line = [sys.executable, "-P", "-m", __name__, json.dumps(asked)]
    # Offline, so that nothing is downloaded.
    child = {**environ, "HF_HUB_OFFLINE": "1"}
    output = run_command(line, seconds=PROBE_SECONDS, environ=child) or Output(127, "")
    return last_json(output.text), output


def last_json(text: str) -> dict[str, Any] | None:
    """Return the last line that is a JSON object; libraries may print other lines."""
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
    return None


def _bind(host: str, port: int) -> str:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            listening.bind(address)
            listening.listen(1)
    except OSError as failure:
        return failure.strerror or str(failure)
    return ""


def _health(url: str) -> dict[str, Any] | None:
    # Without a proxy, and without checking the certificate's name: the server is on this machine.
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked)
    )
    try:
        with opener.open(f"{url}/health", timeout=HEALTH_SECONDS) as answer:
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


def inspect_engine(model: str, device: str, compute_type: str, cache_dir: str | None) -> dict[str, Any]:
    """Return the device and precision that the server would choose, CUDA's libraries, and the model's folder."""
    # Imported here because a failure is one of the results.
    from localwhisper_server.whisper import devices, weights  # noqa: PLC0415

    count = devices.device_count()
    chosen = devices.choose_device(device, compute_type, cuda_devices=count, cuda_types=devices.cuda_compute_types())
    name = weights.default_model(chosen.name) if model == "auto" else model
    folder, problem, downloadable = None, "", False
    try:
        folder = weights.find(name, cache_dir=Path(cache_dir) if cache_dir else None)
    except (weights.ModelError, OSError) as failure:
        problem = str(failure)
        # Such an error has a cause only if the hub, offline here, could not give the model.
        downloadable = isinstance(failure, weights.ModelError) and failure.__cause__ is not None
    return {
        "cuda_devices": count,
        "device": chosen.name,
        "compute_type": chosen.compute_type,
        "compute_types": sorted(devices.compute_types(chosen.name if count else "cpu")),
        "needs_cudnn": devices.opens(b"cudnn"),
        "libraries": [asdict(library) for library in devices.load_libraries()],
        "model": name,
        "folder": str(folder) if folder else None,
        "model_bytes": (folder / "model.bin").stat().st_size if folder else 0,
        "model_problem": problem,
        "downloadable": downloadable,
    }


if __name__ == "__main__":
    try:
        print(json.dumps(inspect_engine(**json.loads(sys.argv[1]))))  # noqa: T201 - the program's output
    except (ImportError, OSError, RuntimeError) as failure:
        print(json.dumps({"error": f"{type(failure).__name__}: {failure}"}))  # noqa: T201 - the program's output
