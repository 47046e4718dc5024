"""Watches where this process connects: nothing outside of the LAN may be reached where audio must stay."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localwhisper_client.shared.lan_ranges import settled

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
LEAVES = "a socket leaves for"
# Refuses what would leave the LAN, in the program and in all that it starts.
GUARD = f"""
import sys
sys.path.append({str(ROOT)!r})
from tests.client import leaving
sys.leaving = leaving.no_socket_leaves()  # forgotten, it would end
sys.leaving.__enter__()
"""

_watching: list[list[str]] = []
_hooked: list[bool] = []


def _audit(event: str, values: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(values[1], tuple):
        host, leaves = values[1][0], settled(str(values[1][0])) is not True
    elif event == "socket.getaddrinfo":
        host = values[0].decode() if isinstance(values[0], bytes) else values[0] or "localhost"
        leaves = settled(host) is None  # an address is only read, a name is asked for
    else:
        return
    if _watching and leaves:
        for seen in _watching:
            seen.append(host)
        sys.stderr.write(f"{LEAVES} {host}\n")
        raise OSError(f"{host} is not on the LAN")


@contextlib.contextmanager
def no_socket_leaves() -> Iterator[list[str]]:
    """Refuse each connection to an address outside of the LAN, and raise at the end if there was one."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_audit)
    seen: list[str] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)
    assert not seen, f"sockets were opened to {seen}"


@contextlib.contextmanager
def names(**known: str) -> Iterator[None]:
    """Answer look-ups of these names (`gateway_example` for `gateway.example`) and of no others but addresses."""
    table = {name.replace("_", "."): address for name, address in known.items()}
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name in table:
            return original(table[name], port, *args, **options)
        if settled(name) is None:
            raise socket.gaierror(socket.EAI_NONAME, f"no such name: {name}")
        return original(host, port, *args, **options)

    socket.getaddrinfo = getaddrinfo
    try:
        yield
    finally:
        socket.getaddrinfo = original


def run(code: str, tmp_path: Path, *, served: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this text in the environment that `localwhisper run` makes, or as it is."""
    from localwhisper_client.patch import (
        installation,  # the guard itself, which imports this module, must not load the SDK
    )

    program = tmp_path / "program.py"
    program.write_text(code)
    guard = tmp_path / "guard"
    guard.mkdir(exist_ok=True)
    (guard / "sitecustomize.py").write_text(GUARD)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(guard), str(ROOT)]), **environ}
    return subprocess.run(
        [sys.executable, program],
        env=installation.environment(environ) if served else environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
