"""How many replicas a load needs: the queue's own code under a synthetic day, without a model and without a network.

Requests come at random, more by day than by night, with lengths that have a heavy tail. Each replica has the fair queue
of the server (`transcription/queue.py`) and its workers; a chunk goes to the replica with the least work, as in
`cluster/routing.py`. What a batch costs is measured on this machine (`measure`), so the figures are its own.

    python benchmarks/capacity.py measure --model tiny.en costs.json   # what batches and uploads cost here: 1 minute
    python benchmarks/capacity.py check costs.json                     # the simulation against a real server: 3 minutes
    python benchmarks/capacity.py plan costs.json --streams 10 100 10000   # replicas for a p95 of two seconds

A stream is a person or a bot that sends one message a minute in the busiest hour.
"""

import argparse
import heapq
import json
import math
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from localwhisper_server.transcription.queue import FairQueue, Job
from localwhisper_server.transcription.scheduler import RESERVED_SECONDS
from localwhisper_server.transcription.transcriber import LOOKAHEAD
from localwhisper_server.types import BatchLimits
from localwhisper_server.whisper.chunks import FRAMES_PER_SECOND, LONGEST_SECONDS, window_frames

# Lengths of recordings: a log-normal body of voice messages, and a Pareto tail of meetings.
MEDIAN_SECONDS, SPREAD = 8.0, 0.8
TAIL_SHARE, TAIL_SECONDS, TAIL_INDEX = 0.01, 120.0, 1.5
LONGEST_RECORDING = 3 * 3600.0
# A sentence is cut in its pauses, so that chunks of a long recording are a little shorter than the longest.
CHUNK_SECONDS = LONGEST_SECONDS - 4
DAY = 86_400.0
# The busiest moment has so many times the mean of the day; nights have almost nothing.
PEAK = 2.0
TARGET_SECONDS = 2.0
# A p95 of two seconds is an aim for recordings up to this length, not for an hour.
MESSAGE_SECONDS = 60.0
UNUSED: "Future[Any]" = Future()


@dataclass(frozen=True)
class Costs:
    """What a machine takes, in seconds.

    A batch takes `batch`, and `chunk`, `frame` and `second` for each of its chunks, of its frames and of its seconds of
    speech, `together` times as long while another worker is busy too. Before its first chunk a request takes `front`,
    and `front_second` for each second of sound, up to one chunk.
    """

    batch: float
    chunk: float
    frame: float
    second: float
    together: float
    front: float
    front_second: float
    workers: int
    limits: dict[str, int]

    def of_batch(self, jobs: Sequence[Job]) -> float:
        """Return the seconds of a batch alone on the machine: all chunks are encoded with the longest window."""
        windows = len(jobs) * (self.chunk + self.frame * max(job.frames for job in jobs))
        return self.batch + windows + self.second * sum(job.chunk.seconds for job in jobs)

    def of_front(self, seconds: float) -> float:
        """Return the seconds from an upload to its first chunk."""
        return self.front + self.front_second * min(seconds, LONGEST_SECONDS)


@dataclass(slots=True)
class Sound:
    """A chunk as the queue sees it."""

    seconds: float
    request: "Recording"

    @property
    def frames(self) -> int:
        """The window that the encoder gets."""
        return window_frames(self.seconds)


@dataclass(slots=True, eq=False)
class Recording:
    """One request: when it came, its chunks that were not sent yet, and how many are in a queue or in a batch."""

    came: float
    seconds: float
    chunks: deque[Sound] = field(default_factory=deque)
    open: int = 0
    replicas: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Outcome:
    """What became of a day: each request's arrival, length and latency, in seconds."""

    requests: list[tuple[float, float, float]]

    def latencies(self, longest: float = MESSAGE_SECONDS) -> list[float]:
        """Return the sorted latencies of recordings up to this length."""
        return sorted(latency for _, seconds, latency in self.requests if seconds <= longest)

    def p95(self) -> float:
        """Return the 95th percentile of the latency of messages."""
        found = self.latencies()
        return found[math.ceil(0.95 * len(found)) - 1]


def lengths(rng: random.Random) -> Iterator[float]:
    """Yield the lengths of recordings, in seconds, without end."""
    while True:
        if rng.random() < TAIL_SHARE:
            yield min(LONGEST_RECORDING, TAIL_SECONDS * rng.paretovariate(TAIL_INDEX))
        else:
            yield max(1.0, rng.lognormvariate(math.log(MEDIAN_SECONDS), SPREAD))


def intensity(at: float) -> float:
    """Return the load at a time of the day in seconds, in parts of the day's mean: PEAK at 2 p.m., 0 at 2 a.m."""
    return 1 + (PEAK - 1) * math.cos(2 * math.pi * (at - 14 * 3600) / DAY)


def day(rng: random.Random, per_second: float, begin: float, end: float) -> list[tuple[float, float]]:
    """Return arrivals and lengths between two times of a day whose mean is so many requests a second."""
    at, arrivals, seconds = begin, [], lengths(rng)
    while True:
        at += rng.expovariate(per_second * PEAK)
        if at >= end:
            return arrivals
        if rng.random() < intensity(at) / PEAK:
            arrivals.append((at, next(seconds)))


class Replica:
    """One machine: the fair queue, and as many batches at a time as it has workers."""

    def __init__(self, number: int, costs: Costs) -> None:
        self.number = number
        self.costs = costs
        self.limits = BatchLimits(**costs.limits)
        self.queue = FairQueue(self.limits)
        self.running: list[list[Job]] = []
        self.reserved_until = -math.inf
        self.sound = 0.0

    def put(self, sound: Sound, now: float) -> None:
        """Queue a chunk."""
        if sound.request not in self.queue.open:
            if self.queue.has_long:
                self.reserved_until = now + RESERVED_SECONDS
            self.queue.admit(sound.request)
        self.queue.put(sound.request, [Job(cast("Any", sound), sound.frames, UNUSED, now)])
        self.sound += sound.frames / FRAMES_PER_SECOND

    def begin(self, now: float) -> tuple[float, list[Job]] | None:
        """Begin the next batch by the rules of the scheduler; return when it ends, and what is in it."""
        if not self.queue.waiting or len(self.running) >= self.costs.workers:
            return None
        workers, idle = self.costs.workers, self.costs.workers - len(self.running)
        waiting, busy = self.queue.waiting, sum(map(len, self.running))
        at_long = sum(any(job.long for job in batch) for batch in self.running)
        above = sum(max(job.frames for job in batch) > self.limits.share for batch in self.running)
        batch = self.queue.take(
            most=min(math.ceil(waiting / idle), max(1, (waiting + busy) // workers)),
            short_first=0 < above >= workers - 1,
            no_long=0 < at_long >= workers - 1 and now < self.reserved_until,
        )
        if not batch:
            return None
        took = self.costs.of_batch(batch) * (self.costs.together if self.running else 1.0)
        self.running.append(batch)
        return now + took, batch

    def end(self, batch: list[Job]) -> None:
        """Note that a batch has ended."""
        self.running.remove(batch)
        self.sound -= sum(job.frames for job in batch) / FRAMES_PER_SECOND


class Cluster:
    """Replicas, and the events of a day in their order."""

    def __init__(self, replicas: int, costs: Costs) -> None:
        self.costs = costs
        self.replicas = [Replica(number, costs) for number in range(replicas)]
        self.events: list[tuple[float, int, str, Any]] = []
        self.sequence = 0
        self.least = [(0.0, number) for number in range(replicas)]
        self.finished: list[tuple[float, float, float]] = []
        self.target = self.may_be_late = math.inf

    def run(self, arrivals: Sequence[tuple[float, float]], *, target: float = math.inf) -> Outcome:
        """Return what becomes of recordings that come at these times and have these lengths.

        It ends early once the p95 of messages is above `target` whatever comes: an overloaded queue takes long.
        """
        self.target = target
        self.may_be_late = 0.05 * sum(seconds <= MESSAGE_SECONDS for _, seconds in arrivals)
        for at, seconds in arrivals:
            pieces = math.ceil(seconds / CHUNK_SECONDS) if seconds > LONGEST_SECONDS else 1
            recording = Recording(at, seconds)
            recording.chunks.extend(Sound(seconds / pieces, recording) for _ in range(pieces))
            self._later(at + self.costs.of_front(seconds), "ready", recording)
        while self.events and self.may_be_late >= 0:
            now, _, kind, value = heapq.heappop(self.events)
            if kind == "ready":
                self._send(value, now)
            else:
                self._end(*value, now)
        return Outcome(self.finished)

    def _later(self, at: float, kind: str, value: Any) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (at, self.sequence, kind, value))

    def _send(self, recording: Recording, now: float) -> None:
        """Send chunks of a recording, as many as a face keeps on the way, each to the replica with the least work."""
        touched = set()
        while recording.chunks and recording.open < LOOKAHEAD:
            replica = self._best()
            replica.put(recording.chunks.popleft(), now)
            heapq.heappush(self.least, (replica.sound, replica.number))
            recording.open += 1
            recording.replicas.add(replica.number)
            touched.add(replica.number)
        for number in touched:
            self._begin(self.replicas[number], now)

    def _best(self) -> Replica:
        """Return the replica with the least sound; entries of the heap that are no longer true are dropped."""
        while True:
            sound, number = heapq.heappop(self.least)
            if math.isclose(sound, self.replicas[number].sound, abs_tol=1e-6):
                return self.replicas[number]

    def _begin(self, replica: Replica, now: float) -> None:
        while (begun := replica.begin(now)) is not None:
            until, batch = begun
            self._later(until, "end", (replica, batch))

    def _end(self, replica: Replica, batch: list[Job], now: float) -> None:
        replica.end(batch)
        heapq.heappush(self.least, (replica.sound, replica.number))
        for recording in {cast("Any", job.chunk).request for job in batch}:
            recording.open -= sum(cast("Any", job.chunk).request is recording for job in batch)
            if recording.chunks:
                self._send(recording, now)
            elif not recording.open:
                for number in recording.replicas:
                    self.replicas[number].queue.leave(recording)
                self.finished.append((recording.came, recording.seconds, now - recording.came))
                self.may_be_late -= recording.seconds <= MESSAGE_SECONDS and now - recording.came > self.target
        self._begin(replica, now)


def busiest(
    costs: Costs,
    replicas: int,
    per_second: float,
    *,
    seed: int = 1,
    requests: int = 20_000,
    target: float = math.inf,
) -> Outcome | None:
    """Return the busiest time of a day, so many requests around 2 p.m.; None if their p95 is above `target`."""
    half = min(DAY / 4, requests / (per_second * PEAK) / 2)
    noon = 14 * 3600.0
    arrivals = day(random.Random(seed), per_second, noon - half, noon + half)  # noqa: S311 - no secret
    cluster = Cluster(replicas, costs)
    outcome = cluster.run(arrivals, target=target)
    return outcome if cluster.may_be_late >= 0 else None


def replicas_for(
    costs: Costs, per_second: float, *, target: float = TARGET_SECONDS, most: int = 1000, requests: int = 20_000
) -> int | None:
    """Return the fewest replicas with which the p95 of messages is at most `target`; None if `most` are too few."""
    low, high = 1, 1
    while busiest(costs, high, per_second, target=target, requests=requests) is None:
        if high >= most:
            return None
        low, high = high + 1, min(most, 2 * high)
    while low < high:
        middle = (low + high) // 2
        if busiest(costs, middle, per_second, target=target, requests=requests) is None:
            low = middle + 1
        else:
            high = middle
    return high


def plan(costs: Costs, streams: Sequence[int]) -> None:
    """Print how many replicas each number of streams needs, and what they put on the network."""
    print(
        "| streams | requests/s, busiest | replicas for p95 ≤ 2 s | p95 with them | uploads, Mbit/s | chunks, Mbit/s |"
    )
    print("|---|---|---|---|---|---|")
    mean = sum(length for length, _ in zip(lengths(random.Random(1)), range(100_000), strict=False)) / 100_000  # noqa: S311 - no secret
    for number in streams:
        peak = number / 60
        wanted = replicas_for(costs, peak / PEAK)
        shown = "> 1000" if wanted is None else str(wanted)
        busy = busiest(costs, wanted, peak / PEAK) if wanted else None
        p95 = f"{busy.p95():.2f} s" if busy else "-"
        # Opus at 24 kbit/s from the callers; 80 log-mel values of 4 bytes a frame to the replicas.
        opus, features = peak * mean * 24e3 / 1e6, peak * mean * 80 * 4 * 8 * FRAMES_PER_SECOND / 1e6
        print(f"| {number} | {peak:.1f} | {shown} | {p95} | {opus:.1f} | {features:.0f} |")


def main() -> None:
    """Measure, check or plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["measure", "check", "plan"])
    parser.add_argument("costs", type=Path)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--streams", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--seconds", type=float, default=120.0, help="How long the real server is under load.")
    parser.add_argument("--load", type=float, default=0.6, help="What part of its throughput the server is asked for.")
    chosen = parser.parse_args()
    if chosen.action == "measure":
        from capacity_measured import measured  # noqa: PLC0415 - the simulation needs no server

        chosen.costs.write_text(json.dumps(asdict(measured(chosen.model)), indent=1), encoding="utf-8")
        return
    costs = Costs(**json.loads(chosen.costs.read_text(encoding="utf-8")))
    if chosen.action == "plan":
        plan(costs, chosen.streams)
    else:
        from capacity_measured import checked  # noqa: PLC0415 - as above

        sys.exit(not checked(costs, chosen.model, seconds=chosen.seconds, load=chosen.load))


if __name__ == "__main__":
    main()
