"""A forked child goes on by itself, whatever the parent's other threads were doing; so does the parent."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.client.fault_server import TEXT, answers, serving

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from tests.client.fault_server import Request

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# The program forks while another of its threads is at `moment`; child and parent each make a call, and say what they
# heard. `pc.local` is a name that has no answer while the parent has not forked.
PROGRAM = """
import asyncio, os, socket, sys, threading, time
import anyio
from localwhisper_client import AsyncLocalWhisper, LocalWhisper
from localwhisper_client.lan import discovery, wake
from localwhisper_client.routing.backend import Signal

flavour, moment, port = sys.argv[1:]
parent, looked_up, forked = os.getpid(), threading.Event(), threading.Event()
resolve = socket.getaddrinfo

def getaddrinfo(host, *rest, **options):
    if host != "pc.local":
        return resolve(host, *rest, **options)
    looked_up.set()
    if os.getpid() == parent:
        forked.wait(60)
    return resolve("127.0.0.1", *rest, **options)

socket.getaddrinfo = getaddrinfo
host = "127.0.0.1" if moment in ("idle", "locked") else "pc.local"
kind = LocalWhisper if flavour == "sync" else AsyncLocalWhisper
client = kind(local_base_url=f"http://{host}:{port}/v1", timeout=60, connect_timeout=60)
finder = discovery.Discovery(None, tuple)

def call():
    fields = {"model": "whisper-1", "file": ("a.ogg", b"audio")}
    if flavour == "sync":
        return client.audio.transcriptions.create(**fields).text
    async def ask():
        return (await client.audio.transcriptions.create(**fields)).text
    return asyncio.run(ask())

asyncio.run(anyio.sleep(0))  # a fork during an import, which this does, is beyond anybody's repair
route = client._route
server, = route.servers.all
if moment == "probe":
    server.backend.learn(Signal.OUTAGE, time.monotonic(), "", lambda _: None)
if moment == "idle":
    call()
held = []
if moment == "locked":
    held = [
        route.servers._lock, route.ledger._lock, finder._lock,
        wake._sent._lock, server.backend.breaker._lock, server.backend.latency._lock, server.prober._probes._lock,
        server.client._client._transport._pool._optional_thread_lock._lock if flavour == "sync" else threading.Lock(),
    ]
    for lock in held:
        lock.acquire()
if host == "pc.local":
    heard = []
    thread = threading.Thread(target=lambda: heard.append(call()), daemon=True)
    thread.start()
    assert looked_up.wait(60)
child = os.fork()
if child == 0:
    try:
        print("child:", call(), finder.urls(), wake._sent.claims(bytes(6), 0.0), flush=True)
    finally:
        os._exit(0)
os.waitpid(child, 0)
forked.set()
for lock in held:
    lock.release()
if host == "pc.local":
    thread.join(60)
print("parent:", heard[0] if host == "pc.local" else call(), flush=True)
"""


@pytest.mark.parametrize(
    ("moment", "flavour"),
    [
        *((moment, flavour) for moment in ("look-up", "probe", "locked") for flavour in ("sync", "async")),
        ("idle", "sync"),  # an async client keeps no connection from one event loop to the next
    ],
)
def test_parent_and_child_go_on_after_a_fork(moment: str, flavour: str, tmp_path: Path) -> None:
    """During a look-up, a probe, or while locks are held; with a connection kept open, each has its own afterwards."""
    peers: list[int] = []

    def behave(conn: socket.socket, request: Request) -> None:
        peers.append(conn.getpeername()[1])
        answers(conn, request)

    with serving(behave) as server:
        program = subprocess.run(
            [sys.executable, "-c", PROGRAM, flavour, moment, str(server.port)],
            env={**os.environ, "LOCALWHISPER_LEDGER": str(tmp_path / "ledger.sqlite3")},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert program.stdout.splitlines() == [f"child: {TEXT} () True", f"parent: {TEXT}"], program.stderr
    if moment == "idle":
        before, child, after = peers
        assert child not in (before, after)
