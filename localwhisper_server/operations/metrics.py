"""The server's work in numbers, for Prometheus. The help text of each says what it means.

Labels come from fixed lists, never from a request, so that no caller can make them grow.
"""

import importlib
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from localwhisper_server.observer import Observer

logger = logging.getLogger(__name__)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900)
# Seconds of work for one second of sound: above 1, the server is slower than speech.
_REAL_TIME = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
_FILL = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)

Memory = Callable[[str], float]
"""Returns the bytes of a device's memory that are "used", or its "total"."""


class Metrics(Observer):
    """Counts into `registry` what it is told."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        counter = partial(Counter, namespace="localwhisper", registry=registry)
        histogram = partial(Histogram, namespace="localwhisper", registry=registry)
        self._requests = counter("requests", "Requests answered.", ["method", "route", "status"])
        self._request_seconds = histogram(
            "request_seconds",
            "Seconds from the head of a request to the end of its response.",
            ["route"],
            buckets=_SECONDS,
        )
        self._audio_seconds = counter("audio_seconds", "Seconds of recordings transcribed, silence included.")
        self._decoded_seconds = counter("decoded_seconds", "Seconds of audio that the model decoded.")
        self._engine_seconds = counter(
            "engine_seconds", "Seconds the model worked. Divided by decoded seconds, this is the real-time factor."
        )
        self._real_time = histogram(
            "real_time_factor", "Seconds of work per second of audio, by batch.", buckets=_REAL_TIME
        )
        self._queue = histogram("queue_seconds", "Seconds a chunk waited for its batch.", buckets=_SECONDS)
        self._fill = histogram("batch_fill", "Chunks in a batch, as a share of its limit.", buckets=_FILL)
        self._chunks = counter("chunks", "Chunks decoded.")
        self._retries = counter(
            "full_window_retries", "Chunks decoded again with the full window, by reason.", ["reason"]
        )
        self._loads = counter("model_loads", "Times the model was loaded.")
        self._memory = counter("out_of_memory", "Times the device ran out of memory during a batch.")

    def read_at_scrape(
        self,
        queue_seconds: Callable[[], float],
        open_requests: Callable[[], int],
        loaded: Callable[[], bool],
        memory: Sequence[Memory] = (),
    ) -> None:
        """Add numbers that are read at each scrape; `memory` has the video memory of each device."""
        for name, text, read in (
            ("queue_estimate_seconds", "How long a request that came now would wait.", queue_seconds),
            ("open_requests", "Transcriptions that wait or run.", open_requests),
            ("model_in_memory", "1 while the model is loaded.", loaded),
        ):
            Gauge(name, text, namespace="localwhisper", registry=self._registry).set_function(read)
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
        """Count a chunk that was decoded again."""
        self._retries.labels(reason.replace(" ", "_")).inc()

    def model_loaded(self) -> None:
        """Count a load."""
        self._loads.inc()

    def out_of_memory(self) -> None:
        """Count a batch that ran out of memory."""
        self._memory.inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all numbers as text, and its content type, in the format that the `Accept` header prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


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
