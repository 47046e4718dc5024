"""The server's work in numbers, for Prometheus. The help text of each says what it means.

Labels come from fixed lists, never from a request, so that no caller can make them grow.
"""

import importlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from localwhisper_server.observer import ModelObserver, Observer

logger = logging.getLogger(__name__)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)
# Seconds of work for one second of sound: above 1, the server is slower than speech.
_REAL_TIME = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
_FILL = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)

Memory = Callable[[str], float]
"""Returns the bytes of a device's memory that are "used", or its "total"."""


class Work(Protocol):
    """What a scrape reads of a model."""

    @property
    def queue_seconds(self) -> float:
        """How long a request that came now would wait."""

    @property
    def requests(self) -> int:
        """How many transcriptions wait or run."""

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""


class Metrics(Observer):
    """Counts into `registry` what it is told."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        counter = partial(Counter, namespace="localwhisper", registry=registry)
        histogram = partial(Histogram, namespace="localwhisper", registry=registry)
        gauge = partial(Gauge, namespace="localwhisper", registry=registry, labelnames=["model"])
        self._requests = counter("requests", "Requests answered.", ["method", "route", "status"])
        self._request_seconds = histogram(
            "request_seconds",
            "Seconds from the head of a request to the end of its response.",
            ["route"],
            buckets=_SECONDS,
        )
        self._by_model: dict[str, Counter | Histogram] = {
            "audio_seconds": counter(
                "audio_seconds", "Seconds of recordings transcribed, silence included.", ["model"]
            ),
            "decoded_seconds": counter("decoded_seconds", "Seconds of audio that the model decoded.", ["model"]),
            "engine_seconds": counter(
                "engine_seconds",
                "Seconds the model worked. Divided by decoded seconds, this is the real-time factor.",
                ["model"],
            ),
            "real_time": histogram(
                "real_time_factor", "Seconds of work per second of audio, by batch.", ["model"], buckets=_REAL_TIME
            ),
            "queue": histogram("queue_seconds", "Seconds a chunk waited for its batch.", ["model"], buckets=_SECONDS),
            "fill": histogram("batch_fill", "Chunks in a batch, as a share of its limit.", ["model"], buckets=_FILL),
            "chunks": counter("chunks", "Chunks decoded.", ["model"]),
            "loads": counter("model_loads", "Times the model was loaded.", ["model"]),
            "memory": counter("out_of_memory", "Times the device ran out of memory during a batch.", ["model"]),
        }
        self._retries = counter(
            "full_window_retries", "Chunks decoded again with the full window, by reason.", ["model", "reason"]
        )
        self._queue_estimate = gauge("queue_estimate_seconds", "How long a request that came now would wait.")
        self._open_requests = gauge("open_requests", "Transcriptions that wait or run.")
        self._in_memory = gauge("model_in_memory", "1 while the model is loaded.")

    def read_at_scrape(self, name: str, model: Work) -> None:
        """Add numbers of a model that are read at each scrape."""
        self._queue_estimate.labels(name).set_function(lambda: model.queue_seconds)
        self._open_requests.labels(name).set_function(lambda: model.requests)
        self._in_memory.labels(name).set_function(lambda: model.loaded)

    def read_video_memory(self, memory: Sequence[Memory]) -> None:
        """Add the video memory of each device, which is read at each scrape."""
        for state, text in (("used", "Video memory used by all programs."), ("total", "Video memory in total.")):
            gauge = Gauge(f"localwhisper_vram_{state}_bytes", text, ["device"], registry=self._registry)
            for number, read_memory in enumerate(memory):
                gauge.labels(str(number)).set_function(partial(read_memory, state))

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count a request."""
        method = method if method in METHODS else OTHER
        route = route or OTHER
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def of_model(self, name: str) -> "ModelMetrics":
        """Return the observer of a served model; `name` becomes a label."""
        counts = {key: metric.labels(name) for key, metric in self._by_model.items()}
        return ModelMetrics(counts, lambda reason: self._retries.labels(name, reason).inc())

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all numbers as text, and its content type, in the format that the `Accept` header prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class ModelMetrics(ModelObserver):
    """Counts what it is told of one model, in metrics that have its label."""

    def __init__(self, counts: Mapping[str, Any], retry: Callable[[str], object]) -> None:
        self._counts = counts
        self._retry = retry

    def transcribed(self, seconds: float) -> None:
        """Count a recording."""
        self._counts["audio_seconds"].inc(seconds)

    def waited(self, seconds: float) -> None:
        """Count a wait."""
        self._counts["queue"].observe(seconds)

    def decoded(self, chunks: int, most: int, sound: float, took: float) -> None:
        """Count a batch."""
        self._counts["chunks"].inc(chunks)
        self._counts["fill"].observe(chunks / max(most, chunks))
        self._counts["decoded_seconds"].inc(sound)
        self._counts["engine_seconds"].inc(took)
        if sound:
            self._counts["real_time"].observe(took / sound)

    def retried(self, reason: str) -> None:
        """Count a chunk that was decoded again."""
        self._retry(reason.replace(" ", "_"))

    def model_loaded(self) -> None:
        """Count a load."""
        self._counts["loads"].inc()

    def out_of_memory(self) -> None:
        """Count a batch that ran out of memory."""
        self._counts["memory"].inc()


def video_memory(load: Callable[[str], Any] = importlib.import_module) -> list[Memory]:
    """Return a function for each NVIDIA device that reads its memory in microseconds; none without a device.

    It needs `nvidia-ml-py`, which the extra `[cuda]` brings. `load` imports a module.
    """
    try:
        nvml = load("pynvml")
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except Exception as reason:  # noqa: BLE001 - no package, no driver, no permission
        logger.debug("no video memory to show: %s", reason)
        return []

    def read(number: int, state: str) -> float:
        try:
            return float(getattr(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(number)), state))
        except nvml.NVMLError:  # the driver was updated, the card fell off the bus
            return math.nan

    return [partial(read, number) for number in range(count)]
