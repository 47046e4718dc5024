"""Two models on one server: alternately asked for with memory for one, and loaded beside the other's messages.

Real servers run on loopback. First, memory has room for one model (`--max-loaded 1`), and each client asks for one
model and the other in turn; one more client asks for the model that is in memory. Bars: every request is answered with
a 200, and those of the last client never wait for a load. Then both models fit, one is unloaded when idle and asked for
again and again, and a client sends messages to the other. Bar: p95 beside the loads is at most 3 times p95 alone.

    python benchmarks/models.py [--clients 8] [--minutes 5] [--models tiny.en base]
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence

import httpx2
from measuring import VOICE, memory, percentile
from prometheus_client.parser import text_string_to_metric_families

from localwhisper_client.server_process import serving

BAR = 3.0
# Longer than the idle time after which a model is unloaded, so that each request loads it.
IDLE_SECONDS, PAUSE_SECONDS = 0.5, 1.5


class Clients:
    """The clients of one server, and what they were answered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: Counter[str] = Counter()
        self.taken: dict[bool, list[float]] = {True: [], False: []}  # by whether the model was in memory
        self.followed: list[float] = []  # of the client that only asks for a model that is in memory
        self.reloaded: list[float] = []
        self.memory: list[float] = []
        self.sent = 0

    async def ask(self, http: httpx2.AsyncClient, model: str) -> float:
        """Send a message for a model, with another prompt each time; return the seconds it took."""
        self.sent += 1
        form = {"model": model, "language": "en", "prompt": str(self.sent)}
        started = time.monotonic()
        answer = await http.post(f"{self.url}/v1/audio/transcriptions", data=form, files={"file": VOICE.read_bytes()})
        self.answers[f"{model}: {answer.status_code}"] += 1
        return time.monotonic() - started

    async def loads(self, http: httpx2.AsyncClient) -> dict[str, float]:
        """Return how often each model was loaded."""
        text = (await http.get(f"{self.url}/metrics")).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {one.labels["model"]: one.value for one in samples if one.name == "localwhisper_model_loads_total"}

    async def alternate(self, http: httpx2.AsyncClient, models: Sequence[str], until: float) -> None:
        """Ask for each model in turn, and note whether it was in memory."""
        while time.monotonic() < until:
            for model in models:
                self.taken[model in await self.in_memory(http)].append(await self.ask(http, model))

    async def follow(self, http: httpx2.AsyncClient, until: float) -> None:
        """Ask for a model that is in memory, again and again, and note whether it was loaded meanwhile."""
        while time.monotonic() < until:
            for model in (await self.in_memory(http))[:1]:
                # Not before /health: a load that ended between the two would count.
                before = await self.loads(http)
                self.followed.append(await self.ask(http, model))
                if (await self.loads(http))[model] > before[model]:
                    self.reloaded.append(self.followed[-1])
            await asyncio.sleep(0.2)

    async def in_memory(self, http: httpx2.AsyncClient) -> list[str]:
        """Return the models that are in memory."""
        return [one["model"] for one in (await http.get(f"{self.url}/health")).json()["models"] if one["loaded"]]

    async def watch(self, pid: int, until: float) -> None:
        """Record the server's memory."""
        while time.monotonic() < until:
            self.memory.append(memory(pid, children=False))
            await asyncio.sleep(0.5)

    async def keep_loading(self, http: httpx2.AsyncClient, model: str, windows: list[tuple[float, float]]) -> None:
        """Ask for a model that is not in memory, again and again; note when."""
        while True:
            started = time.monotonic()
            await self.ask(http, model)
            windows.append((started, time.monotonic()))
            await asyncio.sleep(PAUSE_SECONDS)


def described(taken: Sequence[float]) -> str:
    """Return the count, the median, the 95th percentile and the longest as text."""
    if not taken:
        return "none"
    middle, most = statistics.median(taken), max(taken)
    return f"{len(taken):5}   p50 {middle:6.3f} s   p95 {percentile(taken, 0.95):6.3f} s   max {most:6.3f} s"


async def with_memory_for_one(url: str, pid: int, models: Sequence[str], clients: int, seconds: float) -> bool:
    """Print the figures of the first part; return whether its bars are met."""
    bench, until = Clients(url), time.monotonic() + seconds
    async with httpx2.AsyncClient(timeout=300) as http:
        before = await bench.loads(http)
        turned = [list(models) if number % 2 else list(reversed(models)) for number in range(clients)]
        work = [bench.alternate(http, each, until) for each in turned]
        await asyncio.gather(bench.watch(pid, until), bench.follow(http, until), *work)
        after = await bench.loads(http)
    print("answers:", ", ".join(f"{kind}: {count}" for kind, count in sorted(bench.answers.items())))
    print("loads:", ", ".join(f"{model}: {after[model] - before[model]:.0f}" for model in models))
    print(f"memory: median {statistics.median(bench.memory):.0f} MB, most {max(bench.memory):.0f} MB")
    print("alternating, the model not in memory:", described(bench.taken[False]))
    print("alternating, the model in memory:    ", described(bench.taken[True]))
    print("only models in memory:               ", described(bench.followed))
    print(f"of these, loaded again before the answer: {len(bench.reloaded)} (bar 0)", flush=True)
    return all(kind.endswith(": 200") for kind in bench.answers) and bool(bench.followed) and not bench.reloaded


async def beside_loads(url: str, models: Sequence[str], times: int) -> bool:
    """Print the figures of the second part; return whether its bar is met."""
    bench, kept, loading = Clients(url), models[0], models[1]
    windows: list[tuple[float, float]] = []
    async with httpx2.AsyncClient(timeout=300) as http:
        await bench.ask(http, kept)
        alone = [await bench.ask(http, kept) for _ in range(times)]
        before = await bench.loads(http)
        task = asyncio.create_task(bench.keep_loading(http, loading, windows))
        sent: list[tuple[float, float]] = []
        while len([1 for start, end in sent if any(a < end and start < b for a, b in windows)]) < times:
            started = time.monotonic()
            sent.append((started, started + await bench.ask(http, kept)))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        loads = (await bench.loads(http))[loading] - before[loading]
    beside = [end - start for start, end in sent if any(a < end and start < b for a, b in windows)]
    ratio = percentile(beside, 0.95) / percentile(alone, 0.95)
    print(f"messages to {kept} alone:                       ", described(alone))
    print(f"messages to {kept} while {loading} loads and works:", described(beside))
    print(f"requests to {loading}, each with a load ({loads:.0f}):", described([b - a for a, b in windows]))
    print(f"p95 {ratio:.2f} x (bar {BAR:g})", flush=True)
    return ratio <= BAR and all(kind.endswith(": 200") for kind in bench.answers)


def main() -> int:
    """Print the figures; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description="Two models on one server.")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--models", nargs=2, default=["tiny.en", "base"])
    options = parser.parse_args()
    both = [f"--model={model}" for model in options.models]
    with serving(*both, "--log-file=none", "--max-loaded=1") as server:
        met = asyncio.run(
            with_memory_for_one(server.url, server.process.pid, options.models, options.clients, options.minutes * 60)
        )
    with serving(*both, "--log-file=none", f"--idle-unload={IDLE_SECONDS}") as server:
        met &= asyncio.run(beside_loads(server.url, options.models, options.times))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
