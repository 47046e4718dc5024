"""How long a short message takes alone, and beside each kind of load, in turn in one run.

A real server runs on loopback. One client sends a message of 1.5 s repeatedly while other clients keep up the load.
Bar: p95 beside every load is at most 3 times p95 alone.

    python benchmarks/fairness.py [--model base] [--times 20] [silent] [prompts] [film] [slow]
"""

import argparse
import asyncio
import io
import itertools
import statistics
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable

import av
import httpx2
import numpy as np
from measuring import MINUTE, VOICE, percentile

from localwhisper_client.server_process import serving
from localwhisper_server.audio import pool
from localwhisper_server.whisper import weights
from tests.server.hostile import opus_of_silence
from tests.server.sound import encode

BAR = 3.0
SECONDS = 600.0


Form = tuple[dict[str, str | list[str]], bytes]
numbers = itertools.count()


def message() -> Form:
    """Return a message that differs from the last in one sample, so that no two requests are coalesced."""
    return {"model": "whisper-1", "language": "en"}, MESSAGE[:-2] + struct.pack("<h", next(numbers) % 99)


def _message() -> bytes:
    with VOICE.open("rb") as file:
        return encode(pool.decode(file, max_seconds=60)[None, : int(1.5 * 16_000)])


def _film() -> bytes:
    """Return an hour of AAC, the usual sound of films; its frames can simply be joined."""
    with MINUTE.open("rb") as file:
        speech = pool.decode(file, max_seconds=120)
    return encode(np.stack([speech, speech]), container="adts", codec="aac") * 60


def _slow() -> bytes:
    """Return five minutes that take ten seconds to decode: eight channels of FLAC at FFmpeg's highest rate."""
    file, rate, size = io.BytesIO(), 655_350, 4096
    with av.open(file, "w", format="flac") as output:
        stream = output.add_stream("flac", rate=rate, layout="7.1", options={"strict": "-2"})
        for number in range(280 * rate // size):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8 * size), np.int16), format="s16", layout="7.1")
            frame.sample_rate, frame.pts = rate, number * size
            for packet in stream.encode(frame):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    return file.getvalue()


MESSAGE = _message()
# Each kind of load: how many requests at a time, further fields, and the file.
LOADS: dict[str, tuple[int, dict[str, list[str]], Callable[[], bytes]]] = {
    "silent": (4, {}, lambda: opus_of_silence(hours=5.9)),
    "prompts": (2, {"keywords[]": ["word " * 6000] * 190}, VOICE.read_bytes),
    "film": (1, {}, _film),
    "slow": (8, {}, _slow),
}


class Bench:
    """Sends requests to one server, and counts the load's answers."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/v1/audio/transcriptions"
        self.answers: Counter[int] = Counter()

    async def ask(self, http: httpx2.AsyncClient, form: Form) -> tuple[int, float]:
        """Send one form; returns the status and the seconds it took."""
        started = time.perf_counter()
        fields, file = form
        answer = await http.post(self.url, data=fields, files={"file": ("voice", file)})
        return answer.status_code, time.perf_counter() - started

    async def messages(self, http: httpx2.AsyncClient, times: int) -> list[float]:
        """Send messages one after another and return the seconds of each; each must be answered."""
        taken = []
        for _ in range(times):
            status, seconds = await self.ask(http, message())
            if status != httpx2.codes.OK:
                raise SystemExit(f"a message was answered {status}")
            taken.append(seconds)
        return taken

    async def beside(self, load: str, times: int) -> list[float]:
        """Send messages while other clients keep up a load."""
        count, fields, make = LOADS[load]
        file = make()

        async def keep_up(http: httpx2.AsyncClient, delay: float) -> None:
            await asyncio.sleep(delay)
            while True:
                # Another prompt each time, so that no two requests are coalesced.
                status, _ = await self.ask(http, ({"model": "whisper-1", "prompt": str(next(numbers)), **fields}, file))
                self.answers[status] += 1
                if status != httpx2.codes.OK:
                    await asyncio.sleep(0.2)

        async with httpx2.AsyncClient(timeout=SECONDS) as http, httpx2.AsyncClient(timeout=SECONDS) as others:
            tasks = [asyncio.create_task(keep_up(others, number / 4)) for number in range(count)]
            await asyncio.sleep(1.0 + count / 4)
            try:
                return await self.messages(http, times)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def described(taken: list[float]) -> str:
    """Return the median and the 95th percentile as text."""
    return f"p50 {statistics.median(taken):6.3f} s   p95 {percentile(taken, 0.95):6.3f} s"


async def run(url: str, names: list[str], times: int) -> list[float]:
    """Measure alone and beside each load in turn; returns the ratios."""
    bench, ratios = Bench(url), []
    async with httpx2.AsyncClient(timeout=SECONDS) as http:
        await bench.messages(http, 3)
        for name in names:
            alone = await bench.messages(http, times)
            beside = await bench.beside(name, times)
            ratios.append(percentile(beside, 0.95) / percentile(alone, 0.95))
            print(
                f"{name:8} alone {described(alone)}   beside {described(beside)}   p95 {ratios[-1]:.2f} x", flush=True
            )
            for _ in range(600):
                if not (await http.get(f"{url}/health")).json()["requests"]:
                    break
                await asyncio.sleep(0.1)
    print("the load's answers:", dict(bench.answers))
    return ratios


def main() -> int:
    """Print the figures; return 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description="A short message beside other clients' files.")
    parser.add_argument("loads", nargs="*", default=list(LOADS))
    parser.add_argument("--model", default="base")
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    with serving("--model", str(weights.find(options.model)), "--log-file", "none") as server:
        ratios = asyncio.run(run(server.url, options.loads, options.times))
    return 0 if max(ratios) <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
