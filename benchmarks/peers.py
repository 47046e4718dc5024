"""A thousand hostile peers, one kind at a time, beside a short voice message: it must not wait, and no resource leak.

A real server runs on loopback. The peers run in a process of lower priority, because in reality other machines do their
work; those that hang up do not, or the busy server would keep them from hanging up, and their messages would be real
work. Each peer connects once, all of them within the first quarter of the time:

- tiny-chunks: sends a body in chunks of one byte for as long as the server reads them;
- idle: sends nothing;
- never-reading: sends requests repeatedly and reads no answer;
- hanging-up: sends a voice message and closes, two of three during the upload, the others as soon as it is sent.

Bars for each kind: `/health`, asked over its own connection, p99 within 250 ms; the message's p95 within three times
its median alone; at most 1 MB of log; afterwards as many open files and threads as before, give or take those that
are started once, nothing in the temporary folder, and memory within 10 % of what the first kind left.

    python benchmarks/peers.py [--peers 1000] [--seconds 40] [--model tiny.en] [--kind idle ...] [--slack 1]
                               [--messages 5]
"""

import argparse
import asyncio
import contextlib
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from measuring import VOICE, memory, percentile

from localwhisper_client.server_process import ServerProcess, serving
from localwhisper_server.audio import pool
from localwhisper_server.server import raise_file_limit
from localwhisper_server.transcription.transcriber import DECODERS
from localwhisper_server.whisper import weights

HEALTH_MS = 250.0
MESSAGE_RATIO = 3.0
LOG_BYTES = 1_000_000
# Both sides' deadlines and a moment more.
LEFT_SECONDS = 90.0
HEAD = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.ogg"\r\n\r\n'
MODEL = b'\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'


# The peers


async def tiny_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send one-byte chunks until the server answers."""
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(PART), PART))
    answer = asyncio.ensure_future(reader.read(1))
    try:
        while not answer.done():
            writer.write(b"1\r\nx\r\n" * 10_000)
            await writer.drain()
    finally:
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


async def idle(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Wait for the server to close."""
    await reader.read()


async def never_reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send requests until the server reads no more, and read nothing; the end of the connection is noticed anyway."""
    reader._transport.pause_reading()  # type: ignore[attr-defined] # noqa: SLF001 - nothing public says so
    while True:
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        await writer.drain()
        await asyncio.sleep(1.0)


async def hanging_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a part or all of a message, wait a moment, and close before the answer."""
    body = PART + VOICE.read_bytes() + os.urandom(8) + MODEL
    sent = int(len(body) * min(1.0, random.uniform(0.0, 1.5)))  # noqa: S311 - any will do
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:sent])
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(reader.read(1), random.uniform(0.0, 0.1))  # noqa: S311 - as above


KINDS = {"tiny-chunks": tiny_chunks, "idle": idle, "never-reading": never_reading, "hanging-up": hanging_up}


# Decoding processes of a busy moment are kept, each with its socket, and for a while the threads that read them.
MORE = {"threads": 4 + 2 * DECODERS, "open files": 4 + pool.KEPT}


async def attack(kind: str, address: tuple[str, int], count: int, seconds: float) -> None:
    """Run `count` peers of a kind for `seconds`."""

    async def one(number: int) -> None:
        await asyncio.sleep(number / count * seconds / 4)
        with contextlib.suppress(OSError, TimeoutError):
            connection = socket.socket()
            connection.settimeout(0)
            if kind == "never-reading":
                # So that the server's side can send a few answers only, as on a real network.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            async with asyncio.timeout(seconds * (1 - number / count / 4)):
                await asyncio.get_running_loop().sock_connect(connection, address)
                reader, writer = await asyncio.open_connection(sock=connection)
                try:
                    await KINDS[kind](reader, writer)
                finally:
                    writer.transport.abort()

    await asyncio.gather(*map(one, range(count)))


# Measurements


def held(server: ServerProcess, temporary: Path) -> dict[str, int]:
    """Count what the server holds."""
    process = Path(f"/proc/{server.process.pid}")
    return {
        "threads": len(list((process / "task").iterdir())),
        "open files": len(list((process / "fd").iterdir())),
        "temporary files": len(list(temporary.iterdir())),
        "MB": round(memory(server.process.pid)),
    }


class Beside:
    """Sends messages and asks for `/health`, each on a connection of its own, one after another."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._number = 0

    async def messages(self, seconds: float, *, least: int) -> list[float]:
        """Return the seconds of each message, for `seconds` and at least `least` messages; none are coalesced."""
        took: list[float] = []
        until = time.monotonic() + seconds
        async with httpx2.AsyncClient(timeout=300, trust_env=False) as http:
            while time.monotonic() < until or len(took) < least:
                self._number += 1
                started = time.monotonic()
                answer = await http.post(
                    f"{self._url}/v1/audio/transcriptions",
                    data={"model": "whisper-1", "prompt": str(self._number)},
                    files={"file": VOICE.read_bytes()},
                )
                answer.raise_for_status()
                took.append(time.monotonic() - started)
                await asyncio.sleep(0.2)
        return took

    async def health(self, seconds: float) -> list[float]:
        """Return the seconds that each `/health` took."""
        took: list[float] = []
        until = time.monotonic() + seconds
        async with httpx2.AsyncClient(timeout=300, trust_env=False) as http:
            while time.monotonic() < until:
                started = time.monotonic()
                (await http.get(f"{self._url}/health")).raise_for_status()
                took.append(time.monotonic() - started)
                await asyncio.sleep(0.05)
        return took


async def most_open_files(server: ServerProcess, temporary: Path) -> int:
    """Watch until this is cancelled, and return how many files were open at most."""
    most = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            most = max(most, held(server, temporary)["open files"])
            await asyncio.sleep(0.25)
    return most


async def settled(server: ServerProcess, temporary: Path, before: dict[str, int]) -> dict[str, int]:
    """Return what the server holds once it holds no more than before, or when time is over."""
    until = time.monotonic() + LEFT_SECONDS
    while True:
        now = held(server, temporary)
        rest = await asyncio.to_thread(lambda: server.health()["requests"])
        same = all(now[name] <= before[name] + more for name, more in MORE.items())
        if time.monotonic() > until or (same and not rest and not now["temporary files"]):
            return now
        await asyncio.sleep(0.5)


async def measure(server: ServerProcess, kind: str, options: argparse.Namespace, temporary: Path, log: Path) -> bool:
    """Print one kind's figures; whether all bars are met."""
    beside = Beside(server.url)
    await beside.messages(0.0, least=1)
    alone = statistics.median(await beside.messages(options.seconds / 4, least=min(3, options.messages)))
    before = held(server, temporary)
    written = size(log)
    port = urlsplit(server.url).port
    command = [sys.executable, __file__, "--peers", str(options.peers), "--seconds", str(options.seconds)]
    command += ["--kind", kind, "--port", str(port)]
    priority = None if kind == "hanging-up" else _give_way
    with subprocess.Popen(command, preexec_fn=priority, stdout=subprocess.PIPE) as peers:  # noqa: PLW1509, ASYNC220 - it starts once
        assert peers.stdout is not None
        await asyncio.to_thread(peers.stdout.readline)  # it is up
        watching = asyncio.create_task(most_open_files(server, temporary))
        health, messages = await asyncio.gather(
            beside.health(options.seconds), beside.messages(options.seconds, least=options.messages)
        )
        watching.cancel()
        most = (await asyncio.gather(watching))[0]
        peers.wait(options.seconds + 150)
    after = await settled(server, temporary, before)
    p99, ratio, logged = percentile(health, 0.99) * 1000, percentile(messages, 0.95) / alone, size(log) - written
    print(
        f"{kind}: /health p50 {statistics.median(health) * 1000:.0f}, p99 {p99:.0f}, worst {max(health) * 1000:.0f} ms "
        f"of {len(health)}; message alone {alone:.2f} s, beside median {statistics.median(messages):.2f}, "
        f"p95 {percentile(messages, 0.95):.2f} s = {ratio:.1f} x of {len(messages)}; log {logged / 1000:.0f} kB"
    )
    print(f"  before {before}\n  after  {after}; at most {most} open files meanwhile", flush=True)
    left = any(after[name] > before[name] + more for name, more in MORE.items()) or after["temporary files"]
    grown = after["MB"] > 1.1 * before["MB"] and kind != options.kind[0]
    fast = p99 <= HEALTH_MS * options.slack and ratio <= MESSAGE_RATIO * options.slack
    return fast and logged <= LOG_BYTES and not left and not grown and peers.returncode == 0


def _give_way() -> None:
    os.nice(19)


def size(log: Path) -> int:
    """Return the bytes of a log and of those before it."""
    return sum(file.stat().st_size for file in log.parent.glob(f"{log.name}*"))


def main() -> int:
    """Print the figures; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description="Hostile peers beside a short message.")
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--slack", type=float, default=1.0, help="factor of the bars of time, for a busy machine")
    parser.add_argument("--messages", type=int, default=5, help="at least so many of them beside each kind")
    parser.add_argument("--port", type=int, help="be the peers of a server on this port")
    options = parser.parse_args()
    options.kind = options.kind or list(KINDS)
    raise_file_limit()
    if options.port:
        print("up", flush=True)
        asyncio.run(attack(options.kind[0], ("127.0.0.1", options.port), options.peers, options.seconds))
        return 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as logs:
        os.environ["TMPDIR"] = folder
        log = Path(logs) / "server.log"
        with serving("--model", str(weights.find(options.model)), "--log-file", str(log)) as server:
            met = [asyncio.run(measure(server, kind, options, Path(folder), log)) for kind in options.kind]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
