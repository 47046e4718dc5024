"""A Ray of this user's own on this machine: started, found again, stopped.

Ray's ports listen on all interfaces, and who may call them can run code. So they ask for a token, which is in a file
that only this user can read.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.1
# How often Serve's controller compares what runs with what should. Its own 0.1 s takes 3 % of a core, this 1 %.
CONTROL_SECONDS = "0.5"
# Shared memory for chunks on their way: hundreds of them, at most 1.5 MB each.
OBJECT_STORE_BYTES = 512 * 1024 * 1024


class RayNotStarted(Exception):
    """Ray ended, or did not answer in time; the message names its log."""


@dataclass(frozen=True, slots=True)
class Running:
    """A Ray on this machine: its first process, its address for `ray.init`, and the URL of the face, if it has one."""

    pid: int
    address: str
    url: str = ""


def default_folder(environ: Mapping[str, str]) -> Path:
    """Return where Ray keeps its files; short, since the paths of its sockets have at most 107 bytes."""
    given = environ.get("LOCALWHISPER_CLUSTER_DIR")
    return Path(given) if given else Path(tempfile.gettempdir(), f"localwhisper-ray-{os.getuid()}")


class LocalRay:
    """Starts and stops Ray with its files in `folder`. `clock` and `pause` are there for tests."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._folder = folder
        self._state = folder / "localwhisper.json"
        self._token = folder / "token"
        self._clock = clock
        self._pause = pause

    def environment(self) -> dict[str, str]:
        """Return the variables that Ray's processes and those that connect to them need, before Ray is imported."""
        return {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": CONTROL_SECONDS,
        }

    @property
    def log(self) -> Path:
        """The output of Ray's first process."""
        return self._folder / "ray.log"

    def running(self) -> Running | None:
        """Return the Ray that was started here, or None if it does not run."""
        try:
            found = Running(**json.loads(self._state.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return found if _is_ray(found.pid) else None

    def start(self, *, cpus: int) -> Running:
        """Start Ray with so many CPU cores to give to replicas; return when it can be connected to.

        Raises:
            RayNotStarted: see there.
            OSError: the folder cannot be written.

        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._token.touch(mode=0o600)
        self._token.write_text(secrets.token_hex(32), encoding="ascii")
        port = _free_port()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--node-ip-address={LOOPBACK}", f"--port={port}", f"--num-cpus={cpus}"]
        command += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={self._folder}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment(),
                start_new_session=True,
            )
        running = Running(process.pid, f"{LOOPBACK}:{port}")
        try:
            self._wait(process)
            self.remember(running)
        except BaseException:
            # Ctrl-C among them: it does not reach Ray, which has a session of its own.
            self.stop(running)
            process.wait()
            raise
        return running

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        until = self._clock() + START_SECONDS
        while b"Ray runtime started" not in self.log.read_bytes():
            if process.poll() is not None or self._clock() > until:
                raise RayNotStarted(f"Ray did not start; its output is in {self.log}")
            self._pause(POLL_SECONDS)

    def remember(self, running: Running) -> None:
        """Write down what `running` returns from now on."""
        self._state.write_text(json.dumps(asdict(running)), encoding="utf-8")

    def stop(self, running: Running) -> None:
        """End Ray and all of its processes."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(running.pid, sign)
            except ProcessLookupError:
                break
            until = self._clock() + STOP_SECONDS
            while _is_ray(running.pid) and self._clock() < until:
                self._pause(POLL_SECONDS)
        self._state.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _is_ray(pid: int) -> bool:
    """Return whether this is a running process of Ray: another may have got the number since."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # a child of this process would stay as a zombie
    try:
        return b"ray.scripts" in Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return _runs(pid) if sys.platform != "linux" else False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
