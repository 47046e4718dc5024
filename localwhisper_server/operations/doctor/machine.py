"""What `doctor` knows about a machine, and how it finds it out: by files, commands and sockets.

This module is also a program: `python -m localwhisper_server.operations.doctor.machine JSON` prints, as one line of
JSON, what CTranslate2 finds. A broken driver or library ends or hangs that process, and `doctor` survives.
"""

import contextlib
import glob
import importlib.metadata
import json
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openai

from localwhisper_client._http import http
from localwhisper_server.operations.host import interface_addresses, listen, read_text

COMMAND_SECONDS = 20.0
# Enough to import CTranslate2 and to ask the driver; after that, the driver hangs.
INSPECT_SECONDS = 120.0
HEALTH_SECONDS = 3.0
PACKAGES = ("localwhisper-lan", "ctranslate2", "faster-whisper")


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a command, and its exit status: negative for a signal, None if it took too long."""

    status: int | None
    text: str

    @property
    def last_line(self) -> str:
        """The last line, which is most likely the error."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "nothing"


class Machine:
    """The machine that this program runs on. A test gives the checks one with an RTX 5090 or a broken driver."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.platform = sys.platform
        self.python = platform.python_version()
        self.architecture = platform.machine()
        self.hostname = socket.gethostname()
        self.addresses = interface_addresses()
        self.now = time.time()
        self.installed_at = Path(__file__).stat().st_mtime

    read = staticmethod(read_text)
    find = staticmethod(glob.glob)  # Path.glob takes no absolute pattern

    def run(
        self, line: Sequence[str], *, seconds: float = COMMAND_SECONDS, environ: Mapping[str, str] | None = None
    ) -> Output | None:
        """Run a command and return its output, standard error included; None if it cannot be run."""
        try:
            finished = subprocess.run(  # noqa: S603 - lines that the checks wrote
                list(line),
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                env=environ,
            )
        except OSError:
            return None
        except subprocess.TimeoutExpired:
            return Output(None, "")
        # Windows' commands in WSL print UTF-16.
        encoding = "utf-16-le" if b"\0" in finished.stdout[:64] else "utf-8"
        return Output(finished.returncode, finished.stdout.decode(encoding, errors="replace"))

    def inspect_engine(self, asked: Mapping[str, Any]) -> tuple[dict[str, Any] | None, Output]:
        """Run this module as a program: return what it printed, None if it died, and how it ended."""
        line = [sys.executable, "-P", "-m", __name__, json.dumps(asked)]
        # Offline, so that nothing is downloaded.
        environ = {**self.environ, "HF_HUB_OFFLINE": "1"}
        output = self.run(line, seconds=INSPECT_SECONDS, environ=environ) or Output(127, "")
        for text in reversed(output.text.splitlines()):  # libraries may print other lines
            with contextlib.suppress(ValueError):
                answer = json.loads(text)
                if isinstance(answer, dict):
                    return answer, output
        return None, output

    def bind(self, host: str, port: int) -> str:
        """Return why an address cannot be listened on; "" if it can."""
        try:
            listen(host, port).close()
        except OSError as failure:
            return failure.strerror or str(failure)
        return ""

    def health(self, url: str) -> dict[str, Any] | None:
        """Return the body of a server's /health; None if no server of this project answers."""
        try:
            with local_client(timeout=HEALTH_SECONDS) as client:
                body = client.get(f"{url}/health").json()
        except (http.HTTPError, http.InvalidURL, ValueError):
            return None
        return body if isinstance(body, dict) and "ready" in body else None


def local_client(**options: Any) -> Any:
    """Return the SDK's HTTP client for a server on this machine: without a proxy, and for any certificate."""
    return openai.DefaultHttpxClient(trust_env=False, verify=False, **options)


def inspect_engine(model: Sequence[str], device: str, compute_type: str, cache_dir: str | None) -> dict[str, Any]:
    """Return the device and precision that the server would choose, CUDA's libraries, and the folder of each model."""
    # Imported here because a failure is one of the results.
    from localwhisper_server.whisper import devices, model_names, weights  # noqa: PLC0415 - only where it is needed, since it is slow to import

    count = devices.device_count()
    chosen = devices.choose_device(device, compute_type, cuda_devices=count, cuda_types=devices.cuda_compute_types())
    found = []
    for given in model:
        name = model_names.default_model(chosen.name) if given == "auto" else given
        folder, problem, downloadable = None, "", False
        try:
            folder = weights.find(name, cache_dir=Path(cache_dir) if cache_dir else None)
        except (weights.ModelError, OSError) as failure:
            problem = str(failure)
            # Such an error has a cause only if the hub, offline here, could not give the model.
            downloadable = isinstance(failure, weights.ModelError) and failure.__cause__ is not None
        found.append(
            {
                "model": name,
                "folder": str(folder) if folder else None,
                "bytes": (folder / "model.bin").stat().st_size if folder else 0,
                "problem": problem,
                "downloadable": downloadable,
            }
        )
    return {
        "cuda_devices": count,
        "device": chosen.name,
        "compute_type": chosen.compute_type,
        "compute_types": sorted(devices.compute_types(chosen.name if count else "cpu")),
        "libraries": [asdict(library) for library in devices.load_libraries()],
        "versions": {each.name: each.version for each in importlib.metadata.distributions() if each.name in PACKAGES},
        "models": found,
    }


if __name__ == "__main__":
    try:
        print(json.dumps(inspect_engine(**json.loads(sys.argv[1]))))  # noqa: T201 - the program's output
    except (ImportError, OSError, RuntimeError) as failure:
        print(json.dumps({"error": f"{type(failure).__name__}: {failure}"}))  # noqa: T201 - the program's output
