"""Many clients at once: every request is answered, `/health` stays fast, and memory stays constant.

A real server with the base model runs on loopback. Each client sends a voice message repeatedly, and waits as long as a
503 asks for. Bars: every answer is a 200 or a 503 with Retry-After; `/health` has a p99 under 100 ms; memory in the
last minute is within 5 % of the second minute.

    python benchmarks/load.py [--clients 200] [--minutes 5] [--model base]
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter

import httpx2
from measuring import VOICE, memory, percentile

from localwhisper_client.server_process import serving
from localwhisper_server.whisper import weights

HEALTH_SECONDS = 0.1
# A client waits no longer than this after a 503, so that there is load in every minute.
LONGEST_WAIT_SECONDS = 5.0


class Load:
    """The clients, and what they were answered."""

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.until = time.monotonic() + seconds
        self.answers: Counter[str] = Counter()
        self.health: list[float] = []
        self.memory: list[float] = []

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.until

    async def client(self, http: httpx2.AsyncClient, number: int) -> None:
        """Send the message repeatedly, each time with another prompt, so that no two requests are coalesced."""
        voice = VOICE.read_bytes()
        times = 0
        while not self.over:
            times += 1
            form = {"model": "whisper-1", "prompt": f"{number} {times}"}
            try:
                answer = await http.post(f"{self.url}/v1/audio/transcriptions", data=form, files={"file": voice})
            except httpx2.HTTPError as error:
                self.answers[type(error).__name__] += 1
                continue
            retry_after = answer.headers.get("retry-after")
            kind = str(answer.status_code)
            if answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE and retry_after:
                kind = "503 with Retry-After"
                await asyncio.sleep(min(float(retry_after), LONGEST_WAIT_SECONDS))
            self.answers[kind] += 1

    async def watch(self, pid: int) -> None:
        """Ask for `/health` on a connection of its own, and record memory."""
        async with httpx2.AsyncClient(timeout=30) as http:
            while not self.over:
                started = time.monotonic()
                answer = await http.get(f"{self.url}/health")
                self.health.append(time.monotonic() - started)
                self.answers[f"/health {answer.status_code}"] += 1
                self.memory.append(memory(pid))
                await asyncio.sleep(HEALTH_SECONDS)

    async def run(self, clients: int, pid: int) -> None:
        """Run all clients until the time is up."""
        limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx2.AsyncClient(timeout=300, limits=limits) as http:
            await asyncio.gather(self.watch(pid), *(self.client(http, number) for number in range(clients)))


def main() -> int:
    """Print the figures; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description="Many clients at once.")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--model", default="base")
    options = parser.parse_args()
    with serving("--model", str(weights.find(options.model))) as server:
        load = Load(server.url, options.minutes * 60)
        asyncio.run(load.run(options.clients, server.process.pid))
    p99 = percentile(load.health, 0.99) * 1000
    minute = len(load.memory) / options.minutes
    second = statistics.median(load.memory[int(minute) : int(2 * minute)] or load.memory)
    last = statistics.median(load.memory[-int(minute) :])
    print(", ".join(f"{kind}: {count}" for kind, count in sorted(load.answers.items())))
    print(f"/health p50 {statistics.median(load.health) * 1000:.1f} ms, p99 {p99:.1f} ms (bar 100)")
    print(f"memory: second minute {second:.0f} MB, last {last:.0f} MB, {last / second - 1:+.1%} (bar 5 %)")
    fair = set(load.answers) <= {"200", "503 with Retry-After", "/health 200"}
    return 0 if fair and p99 < 100 and abs(last / second - 1) < 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
