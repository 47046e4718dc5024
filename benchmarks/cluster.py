"""The cluster form against one process: two replicas with one thread each, and one process with two threads.

Both are real, on this machine, one after the other. Bars: throughput of 16 clients within 15 %, p50 of one client
within 30 ms, and an hour on two replicas in at most 0.6 times the time of one, with the same text. Needs `[ray]`.

    python benchmarks/cluster.py [--model tiny.en] [--messages 64] [--minutes 60] [--only messages|long]
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
from capacity_measured import upload
from measuring import VOICE, percentile

from localwhisper_client.server_process import serving

CLIENTS = 16
ALONE = 15


@contextlib.contextmanager
def cluster(model: str, replicas: int, *, batch: int = 0) -> Iterator[str]:
    """Run a cluster on this machine; give its base URL."""
    folder = Path(tempfile.mkdtemp(prefix="lw-"))
    environment = os.environ | {"LOCALWHISPER_CLUSTER_DIR": str(folder)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "localwhisper_server", "cluster"]
    options = ["--model", model, "--replicas", str(replicas), "--port", port, "--max-per-address", "0"]
    options += ["--batch", str(batch)] if batch else []
    try:
        subprocess.run([*command, "up", *options], env=environment, check=True, stdout=subprocess.DEVNULL)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        subprocess.run([*command, "down"], env=environment, check=False, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def process(model: str) -> Iterator[str]:
    """Run one process with two threads; give its base URL."""
    with serving("--model", model, "--threads", "2", "--max-per-address", "0") as server:
        yield server.base_url


async def ask(http: httpx2.AsyncClient, data: bytes, **form: str) -> httpx2.Response:
    """Ask for a transcription."""
    fields = {"model": "whisper-1", "language": "en"} | form
    answer = await http.post("audio/transcriptions", data=fields, files={"file": ("a.ogg", data)})
    answer.raise_for_status()
    return answer


async def messages(url: str, count: int) -> tuple[float, float]:
    """Return how many messages a second CLIENTS clients get, and the p50 of one client, in seconds."""
    voice, rng = VOICE.read_bytes(), random.Random(7)  # noqa: S311 - no secret
    async with httpx2.AsyncClient(base_url=url, timeout=300) as http:
        for _ in range(3):
            await ask(http, voice + rng.randbytes(8))
        alone = []
        for _ in range(ALONE):
            began = time.monotonic()
            await ask(http, voice + rng.randbytes(8))
            alone.append(time.monotonic() - began)
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                await ask(http, voice + rng.randbytes(8))

        began = time.monotonic()
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return count / (time.monotonic() - began), percentile(alone, 0.5)


async def long(url: str, data: bytes) -> tuple[float, str]:
    """Return how long a recording takes, and its text."""
    async with httpx2.AsyncClient(base_url=url, timeout=3600) as http:
        began = time.monotonic()
        answer = await ask(http, data, response_format="text")
        return time.monotonic() - began, answer.text


def main() -> None:
    """Measure, print, and exit with 1 if a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--messages", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", choices=["messages", "long"])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2], help="For the long recording.")
    parser.add_argument(
        "--batch", type=int, default=0, help="Chunks at once of the long recording; with 1 its text depends on nothing."
    )
    parser.add_argument("--keep", type=Path, help="File that keeps what was measured, to measure in several runs.")
    chosen = parser.parse_args()
    met = []
    if chosen.only != "long":
        with process(chosen.model) as url:
            one = asyncio.run(messages(url, chosen.messages))
        with cluster(chosen.model, 2) as url:
            two = asyncio.run(messages(url, chosen.messages))
        print(f"one process, two threads: {one[0]:.2f} messages/s, p50 alone {one[1] * 1000:.0f} ms")
        print(f"two replicas, one thread each: {two[0]:.2f} messages/s, p50 alone {two[1] * 1000:.0f} ms")
        met += [abs(two[0] / one[0] - 1) <= 0.15 or two[0] > one[0], two[1] - one[1] <= 0.03]
    if chosen.only != "messages":
        data = upload(chosen.minutes * 60, random.Random(3))  # noqa: S311 - no secret
        found = json.loads(chosen.keep.read_text(encoding="utf-8")) if chosen.keep and chosen.keep.exists() else {}
        for replicas in chosen.replicas:
            with cluster(chosen.model, replicas, batch=chosen.batch) as url:
                found[str(replicas)] = asyncio.run(long(url, data))
            print(f"{chosen.minutes:g} minutes on {replicas} replica(s): {found[str(replicas)][0]:.1f} s")
        if chosen.keep:
            chosen.keep.write_text(json.dumps(found), encoding="utf-8")
        if found.keys() >= {"1", "2"}:
            ratio, same = found["2"][0] / found["1"][0], found["2"][1] == found["1"][1]
            print(
                f"ratio {ratio:.2f}, the text is {'the same' if same else 'different'}: {len(found['1'][1])} characters"
            )
            met += [ratio <= 0.6, same]
    print(json.dumps({"met": met}))
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
