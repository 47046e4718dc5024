from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from localwhisper_server.api.access_control import Rules
from localwhisper_server.api.upstream import Upstream
from localwhisper_server.errors import UnreadableAudio
from localwhisper_server.operations.metrics import Metrics, video_memory
from tests.server.driving import TEXT, FakeTranscriber, call, make_app, transcribe

pytestmark = pytest.mark.anyio

KEY = "lw-0123456789abcdef"


@pytest.fixture
def metrics() -> Metrics:
    """Metrics in a registry of this test's own."""
    return Metrics(CollectorRegistry())


def counted(metrics: Metrics, transcriber: FakeTranscriber | None = None, **given: Any) -> Any:
    """Return the app, whose work is counted."""
    return make_app(transcriber, observer=metrics, exposition=metrics.exposition, **given)


def read(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return a number's value as a scraper reads it; None where there is none."""
    text = metrics.exposition("")[0].decode()
    for family in parse(text):
        for sample in family.samples:
            if sample.name == f"localwhisper_{name}" and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


async def test_requests_are_counted_by_route_and_status(metrics: Metrics) -> None:
    """By the template that matched; all paths that match no route are one line."""
    good, bad = FakeTranscriber(), FakeTranscriber([UnreadableAudio()])
    rules = Rules(keys=(KEY,))
    headers = {"authorization": f"Bearer {KEY}"}
    for backend in (good, bad):
        app = counted(metrics, backend, rules=rules)
        for path in ("/v1/models/base", "/v1/models/org/base", "/v1/models/x", "/nowhere", "/no/where"):
            await call(app, "GET", path, headers)
        await call(app, "GET", "/v1/models/base")
        await call(app, "BREW", "/v1/models", headers)
        await call(app, "OPTIONS", "/v1/models", headers | {"host": "evil.example"})
    template = "/v1/models/{name:path}"
    assert read(metrics, "requests_total", method="GET", route=template, status="200") == 4
    assert read(metrics, "requests_total", method="GET", route=template, status="404") == 2
    assert read(metrics, "requests_total", method="GET", route="other", status="404") == 4
    assert read(metrics, "requests_total", route="other", status="401") == 2
    assert read(metrics, "requests_total", route="other", status="403") == 2
    assert read(metrics, "requests_total", method="other", status="405") == 2
    assert read(metrics, "request_seconds_count", route="other") == 8


async def test_the_upstream_is_one_route(metrics: Metrics) -> None:
    """However many paths the upstream has."""
    import httpx2

    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, stream=httpx2.ByteStream(b"{}")))
    upstream = Upstream("https://api.example/v1", transport=transport)
    app = counted(metrics, upstream=upstream)
    for number in range(5):
        await call(app, "GET", f"/v1/files/{number}")
    assert read(metrics, "requests_total", route="upstream", status="200") == 5


async def test_metrics_are_shown_with_a_key_alone(metrics: Metrics) -> None:
    """Like every path but /health; without metrics, there is no such path."""
    assert (await call(make_app(), "GET", "/metrics")).status == 404
    app = counted(metrics, api_key=KEY)
    assert (await call(app, "GET", "/metrics")).status == 401
    answer = await call(app, "GET", "/metrics", {"authorization": f"Bearer {KEY}"})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert list(parse(answer.body.decode()))
    accept = {"authorization": f"Bearer {KEY}", "accept": "application/openmetrics-text; version=1.0.0"}
    answer = await call(app, "GET", "/metrics", accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert list(parse_openmetrics(answer.body.decode()))


async def test_nothing_private_is_in_them(metrics: Metrics) -> None:
    """No word of a transcript, no file name, no key, no path, no address of a caller."""
    app = counted(metrics, api_key=KEY)

    async def with_key(scope: Any, receive: Any, send: Any) -> None:
        headers = [*scope["headers"], (b"authorization", f"Bearer {KEY}".encode()), (b"x-request-id", b"mine")]
        await app({**scope, "headers": headers, "client": ("192.168.77.7", 1)}, receive, send)

    answer = await transcribe(with_key, ("prompt", "hush"), filename="diary.ogg")
    assert answer.json()["text"] == TEXT
    await call(with_key, "GET", "/secret-path")
    text = metrics.exposition("")[0].decode()
    assert "/v1/audio/transcriptions" in text
    for secret in ("morning", "hush", "diary", KEY, "mine", "192.168.77.7", "secret-path"):
        assert secret not in text


def test_the_models_work(metrics: Metrics) -> None:
    """A batch of three chunks of eight, six seconds of audio in half a second, one chunk decoded again."""
    work = metrics.of_model("small")
    metrics.of_model("base").decoded(1, 1, 1.0, 1.0)
    work.decoded(3, 8, 6.0, 0.5)
    work.retried("past the end")
    work.transcribed(7.5)
    work.waited(0.3)
    work.model_loaded()
    work.out_of_memory()
    for name, value in {
        "chunks_total": 3.0,
        "decoded_seconds_total": 6.0,
        "engine_seconds_total": 0.5,
        "real_time_factor_sum": 0.5 / 6,
        "batch_fill_sum": 3 / 8,
        "audio_seconds_total": 7.5,
        "queue_seconds_sum": 0.3,
        "model_loads_total": 1.0,
        "out_of_memory_total": 1.0,
    }.items():
        assert read(metrics, name, model="small") == pytest.approx(value), name
    assert read(metrics, "full_window_retries_total", model="small", reason="past_the_end") == 1
    work.decoded(1, 0, 0.0, 0.1)  # without sound there is no real-time factor
    counted = [read(metrics, name, model="small") for name in ("real_time_factor_count", "batch_fill_count")]
    assert counted == [1, 2]
    assert read(metrics, "chunks_total", model="base") == 1


def test_what_is_read_at_a_scrape(metrics: Metrics) -> None:
    """The numbers of that moment; video memory in bytes."""
    state = SimpleNamespace(queue_seconds=1.5, requests=3, loaded=True)
    metrics.read_at_scrape("base", state)
    metrics.read_at_scrape("small", SimpleNamespace(queue_seconds=0.0, requests=0, loaded=False))
    metrics.read_video_memory([{"used": 5, "total": 12}.__getitem__, {"used": 0, "total": 24}.__getitem__])
    assert read(metrics, "queue_estimate_seconds", model="base") == 1.5
    assert read(metrics, "open_requests", model="base") == 3
    assert read(metrics, "model_in_memory", model="base") == 1
    assert read(metrics, "model_in_memory", model="small") == 0
    assert read(metrics, "vram_used_bytes", device="0") == 5
    assert read(metrics, "vram_total_bytes", device="1") == 24
    state.loaded = False
    assert read(metrics, "model_in_memory", model="base") == 0


@given(st.lists(st.tuples(st.text(), st.none(), st.sampled_from([0, 200, 404, 499]))))
def test_callers_cannot_make_them_grow(asked: list[tuple[str, None, int]]) -> None:
    """Whatever methods and paths they send."""
    metrics = Metrics(CollectorRegistry())
    for method, route, status in asked:
        metrics.answered(method, route, status, 0.1)
    series = Counter(sample.name for family in parse(metrics.exposition("")[0].decode()) for sample in family.samples)
    assert series["localwhisper_requests_total"] <= 8 * 4


# Video memory


class FakeNvml:
    """NVIDIA's library, with two cards, until the driver breaks."""

    NVMLError = type("NVMLError", (Exception,), {})
    nvmlInit = nvmlDeviceGetHandleByIndex = staticmethod(lambda *number: number[-1:])  # noqa: N815 - NVML's name
    nvmlDeviceGetCount = staticmethod(lambda: 2)  # noqa: N815 - NVML's name
    broken = False

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[int]) -> Any:  # noqa: N802 - NVML's name
        if self.broken:
            raise self.NVMLError
        return SimpleNamespace(used=handle[0] * 10, total=100)


def test_video_memory_is_read_from_each_card() -> None:
    """In bytes; a driver that fails later gives no number."""
    nvml = FakeNvml()
    first, second = video_memory(lambda _: nvml)
    assert (first("used"), second("used"), second("total")) == (0, 10, 100)
    nvml.broken = True
    assert math.isnan(second("used"))


def test_no_card_or_no_library() -> None:
    """There is nothing to read, and nothing is raised."""

    def missing(name: str) -> Any:
        raise ImportError(name)

    assert video_memory(missing) == []
