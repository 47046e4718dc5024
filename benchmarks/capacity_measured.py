"""The measured side of `capacity.py`: what batches and uploads cost on this machine, and a real server under load."""

import asyncio
import dataclasses
import io
import random
import statistics
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
from capacity import Cluster, Costs, lengths
from measuring import MINUTE, percentile

from localwhisper_client.server_process import serving
from localwhisper_server.audio import pool
from localwhisper_server.types import SAMPLE_RATE, AudioChunk, Decoding, Samples, Voice
from localwhisper_server.whisper import devices, weights
from localwhisper_server.whisper.chunks import Chunk, find_speech, window_frames
from localwhisper_server.whisper.engine import Engine
from localwhisper_server.whisper.model_manager import ModelManager

ROUNDS = 3
SIZES = ((1, 2.0), (1, 5.0), (1, 9.0), (1, 14.0), (1, 24.0), (2, 6.0), (4, 8.0), (2, 24.0))
# Longer ones would leave too few requests for a percentile in minutes; the tail is the same below.
LONGEST_CHECKED = 150.0
BAR = 0.15
BURST = 40

Arrivals = list[tuple[float, float]]


def sound(seconds: float, rng: random.Random) -> Samples:
    """Return speech of this length, from anywhere in a recording of a minute that is repeated."""
    with MINUTE.open("rb") as file:
        minute = pool.decode(file, max_seconds=100)
    first = rng.randrange(minute.size)
    return np.resize(np.roll(minute, -first), round(seconds * SAMPLE_RATE))


def upload(seconds: float, rng: random.Random) -> bytes:
    """Return such speech as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(SAMPLE_RATE)
        wav.writeframes((sound(seconds, rng) * 32767).astype(np.int16).tobytes())
    return file.getvalue()


def measured(model: str) -> Costs:
    """Return the costs of a model on the CPU of this machine: least squares over batches of several sizes."""
    rng = random.Random(11)  # noqa: S311 - no secret
    workers = devices.choose_workers("cpu", 0, cores=devices.usable_cores())
    device = devices.choose_device("cpu", "auto", cuda_devices=0, cuda_types=frozenset())
    engine = Engine(weights.find(model), device, workers)
    engine.warm_up()
    manager = ModelManager(lambda _: engine, device, clock=time.monotonic)

    def chunk(seconds: float) -> Chunk:
        samples = sound(seconds, rng)
        piece = AudioChunk(samples, 0.0, tuple(find_speech(samples, Voice())))
        return engine.prepare(piece, Decoding(language="en"))

    limits = manager.measure_limits(chunk(5.0), items=0)
    rows, took = [], []
    for size, seconds in SIZES * ROUNDS:
        batch = [chunk(seconds) for _ in range(size)]
        rows.append([1.0, size, size * max(one.frames for one in batch), sum(one.seconds for one in batch)])
        took.append(_timed(partial(_decoded, engine, batch)))
    fixed, each, frame, second = _not_negative(np.array(rows), np.array(took))
    pairs = [[chunk(8.0), chunk(8.0)] for _ in range(ROUNDS)]
    alone = statistics.mean(_timed(partial(_decoded, engine, pair)) for pair in pairs)
    with ThreadPoolExecutor(workers.count) as threads:
        runs = [threads.map(partial(_timed), [partial(_decoded, engine, pair)] * workers.count) for pair in pairs]
        beside = statistics.mean(seconds for run in runs for seconds in run)
    front, front_second = _front(model, rng, lambda one: fixed + each + frame * window_frames(one) + second * one)
    return Costs(
        batch=fixed,
        chunk=each,
        frame=frame,
        second=second,
        together=max(1.0, beside / alone),
        front=front,
        front_second=front_second,
        workers=workers.count,
        limits=dataclasses.asdict(limits),
    )


def _not_negative(rows: npt.NDArray[np.float64], took: npt.NDArray[np.float64]) -> list[float]:
    """Return the least-squares coefficients of the columns; those that would be below 0 are left out one by one."""
    kept = list(range(rows.shape[1]))
    while True:
        found = np.linalg.lstsq(rows[:, kept], took, rcond=None)[0]
        if found.min() >= 0:
            return [float(found[kept.index(at)]) if at in kept else 0.0 for at in range(rows.shape[1])]
        del kept[int(found.argmin())]


def _decoded(engine: Engine, chunks: list[Chunk]) -> None:
    """Decode chunks and their remainders, as a request does."""
    while chunks:
        chunks = [result.remainder for result in engine.run(chunks) if result.remainder is not None]


def _timed(work: Any) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _front(model: str, rng: random.Random, engine_seconds: Any) -> tuple[float, float]:
    """Return what a request takes beside the engine, from messages of two lengths, one at a time."""
    found = []
    with serving("--model", model) as server, httpx2.Client(timeout=100) as http:
        for seconds in (4.0, 20.0):
            times = []
            for _ in range(5):
                began = time.monotonic()
                _ask(http, server.base_url, upload(seconds, rng))
                times.append(time.monotonic() - began)
            found.append(max(0.01, statistics.median(times) - engine_seconds(seconds)))
    slope = max(0.0, (found[1] - found[0]) / 16)
    return max(0.0, found[0] - 4 * slope), slope


def _ask(http: httpx2.Client, base_url: str, data: bytes) -> None:
    form = {"model": "whisper-1", "language": "en"}
    answer = http.post(f"{base_url}/audio/transcriptions", data=form, files={"file": ("a.wav", data)})
    answer.raise_for_status()


def checked(costs: Costs, model: str, *, seconds: float, load: float) -> bool:
    """Compare the simulation with a real server; return whether it is within the bar.

    The throughput is that of BURST recordings that all come at once, and the p95 that of recordings over `seconds`.
    """
    rng = random.Random(23)  # noqa: S311 - another seed than that of the costs
    burst = [(0.0, min(length, LONGEST_CHECKED)) for length, _ in zip(lengths(rng), range(BURST), strict=False)]
    paced = _arrivals(costs, rng, seconds, load)
    with serving("--model", model, "--queue", "1000", "--max-per-address", "0") as server:
        real = [asyncio.run(_load(server.base_url, arrivals, rng)) for arrivals in (burst, paced)]
    simulated = [Cluster(1, costs).run(arrivals).requests for arrivals in (burst, paced)]
    print("| | sound/s, all at once | p50 | p95 | requests |\n|---|---|---|---|---|")
    figures = []
    for name, (at_once, over_time) in (("measured", real), ("simulated", simulated)):
        speed = sum(length for _, length, _ in at_once) / max(latency for _, _, latency in at_once)
        latencies = [latency for _, _, latency in over_time]
        p95 = percentile(latencies, 0.95)
        figures.append((speed, p95))
        print(f"| {name} | {speed:.2f} | {percentile(latencies, 0.5):.2f} s | {p95:.2f} s | {len(latencies)} |")
    (speed, p95), (other_speed, other_p95) = figures
    differences = abs(other_speed / speed - 1), abs(other_p95 / p95 - 1)
    print(f"throughput {differences[0]:.1%} and p95 {differences[1]:.1%} apart; the bar is {BAR:.0%}")
    return max(differences) <= BAR


def _arrivals(costs: Costs, rng: random.Random, seconds: float, load: float) -> Arrivals:
    """Return arrivals that ask for the part `load` of what one worker after the other would do."""
    some = [min(length, LONGEST_CHECKED) for length, _ in zip(lengths(rng), range(1000), strict=False)]
    each = statistics.mean(
        costs.batch + costs.chunk + costs.frame * 100 * max(10.0, length + 3) + costs.second * length for length in some
    )
    rate = load * costs.workers / costs.together / each
    at, arrivals, drawn = 0.0, [], lengths(rng)
    while True:
        at += rng.expovariate(rate)
        if at > seconds:
            return arrivals
        arrivals.append((at, min(next(drawn), LONGEST_CHECKED)))


async def _load(
    base_url: str, arrivals: list[tuple[float, float]], rng: random.Random
) -> list[tuple[float, float, float]]:
    """Send each recording at its time, whatever became of the earlier ones; return the latencies."""
    files = [upload(length, rng) for _, length in arrivals]
    done: list[tuple[float, float, float]] = []
    async with httpx2.AsyncClient(timeout=600, limits=httpx2.Limits(max_connections=None)) as http:
        began = time.monotonic()

        async def one(at: float, length: float, data: bytes) -> None:
            await asyncio.sleep(max(0.0, at - (time.monotonic() - began)))
            form = {"model": "whisper-1", "language": "en"}
            sent = time.monotonic()
            answer = await http.post(f"{base_url}/audio/transcriptions", data=form, files={"file": ("a.wav", data)})
            answer.raise_for_status()
            done.append((at, length, time.monotonic() - sent))

        await asyncio.gather(*(one(*arrival, data) for arrival, data in zip(arrivals, files, strict=True)))
    return done
