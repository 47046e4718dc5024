"""The server's work in numbers, for Prometheus. What each means is in its help text.

Labels come from lists of ours, never from a request, so that no caller can make them grow.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)
# Seconds of work for one second of sound: above 1, speech comes faster than it is written down.
_REAL_TIME = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
_FILL = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)

Memory = tuple[str, int, int]
"""A device's number, its bytes in use and its bytes in all."""


class State(Protocol):
    """What is looked at when somebody asks, instead of being told."""

    @property
    def queue_seconds(self) -> float:
        """How long a request that came now would wait."""

    @property
    def open_requests(self) -> int:
        """How many transcriptions wait or run."""

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""


class Metrics:
    """An `observe.Observer` that counts into `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests = Counter(
            "localwhisper_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "localwhisper_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._audio_seconds = Counter(
            "localwhisper_audio_seconds", "Seconds of recordings transcribed, silence included.", registry=registry
        )
        self._decoded_seconds = Counter(
            "localwhisper_decoded_seconds", "Seconds of sound that the model was given.", registry=registry
        )
        self._engine_seconds = Counter(
            "localwhisper_engine_seconds",
            "Seconds the model worked; by decoded seconds, the real-time factor over a while.",
            registry=registry,
        )
        self._real_time = Histogram(
            "localwhisper_real_time_factor",
            "Seconds of work per second of sound, by batch.",
            buckets=_REAL_TIME,
            registry=registry,
        )
        self._queue = Histogram(
            "localwhisper_queue_seconds",
            "Seconds that a chunk waited for its batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._fill = Histogram(
            "localwhisper_batch_fill", "Chunks in a batch, of those it may hold.", buckets=_FILL, registry=registry
        )
        self._chunks = Counter("localwhisper_chunks", "Chunks decoded.", registry=registry)
        self._reruns = Counter(
            "localwhisper_gate_reruns", "Chunks done again with the full window, by why.", ["reason"], registry=registry
        )
        self._loads = Counter("localwhisper_model_loads", "Times the model was loaded.", registry=registry)
        self._memory = Counter(
            "localwhisper_out_of_memory", "Times the device's memory ran out under a batch.", registry=registry
        )

    def look_at(self, state: State, memory: Callable[[], Iterable[Memory]] | None = None) -> None:
        """Add what is read when somebody asks; `memory` gives the video memory of each device that has any."""
        for name, text, read in (
            ("queue_estimate_seconds", "How long a request that came now would wait.", lambda: state.queue_seconds),
            ("open_requests", "Transcriptions that wait or run.", lambda: state.open_requests),
            ("model_in_memory", "1 while the model is loaded.", lambda: float(state.loaded)),
        ):
            Gauge(f"localwhisper_{name}", text, registry=self._registry).set_function(read)
        if memory is not None:
            self._registry.register(_VideoMemory(memory))

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count a request."""
        method = method if method in METHODS else OTHER
        route = route or OTHER
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def transcribed(self, seconds: float) -> None:
        """Count a recording."""
        self._audio_seconds.inc(seconds)

    def waited(self, seconds: float) -> None:
        """Count a wait."""
        self._queue.observe(seconds)

    def decoded(self, chunks: int, most: int, sound: float, took: float) -> None:
        """Count a batch."""
        self._chunks.inc(chunks)
        self._fill.observe(chunks / max(most, chunks))
        self._decoded_seconds.inc(sound)
        self._engine_seconds.inc(took)
        if sound:
            self._real_time.observe(took / sound)

    def retried(self, reason: str) -> None:
        """Count a chunk done again."""
        self._reruns.labels(reason.replace(" ", "_")).inc()

    def model_loaded(self) -> None:
        """Count a load."""
        self._loads.inc()

    def out_of_memory(self) -> None:
        """Count it."""
        self._memory.inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all of it as text and that text's content type, in the format the `Accept` header prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _VideoMemory(Collector):
    def __init__(self, read: Callable[[], Iterable[Memory]]) -> None:
        self._read = read

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Name what may be collected; else the registry would read the device to find out."""
        return self._families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read every device once."""
        used, total = self._families()
        for device, bytes_used, bytes_total in self._read():
            used.add_metric([device], bytes_used)
            total.add_metric([device], bytes_total)
        yield used
        yield total

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily("localwhisper_vram_used_bytes", "Video memory in use, by anybody.", labels=["device"]),
            GaugeMetricFamily("localwhisper_vram_total_bytes", "Video memory in all.", labels=["device"]),
        )
