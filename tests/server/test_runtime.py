from __future__ import annotations

import asyncio
import io
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client import __version__
from localwhisper_server.api import routes
from localwhisper_server.api.middleware import Limits
from localwhisper_server.errors import Busy, EngineFailed
from localwhisper_server.runtime import Runtime
from localwhisper_server.served_model import FAILURES_IN_A_ROW, SelfTest, voice_message
from localwhisper_server.settings import Settings
from localwhisper_server.types import Options, Transcript
from localwhisper_server.whisper.devices import Device, Workers
from tests.server.driving import call, multipart
from tests.server.engine_double import CUDNN, OUT_OF_MEMORY, EngineDouble, chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., Runtime]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Give settings with a folder that passes for a model."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "model.bin").touch()
    return Settings(model=str(folder), port=0)


def _runtime(settings: Settings, engine: EngineDouble, **given: Any) -> Runtime:
    return Runtime(settings, **({"load": lambda *_: engine, "cuda_devices": 0} | given))


@pytest.fixture
def start() -> Iterator[Start]:
    """Give a function that starts a runtime, which is stopped after the test."""
    started: list[Runtime] = []

    def start(settings: Settings, engine: EngineDouble, **given: Any) -> Runtime:
        started.append(_runtime(settings, engine, **given))
        started[-1].start()
        return started[-1]

    yield start
    assert all(runtime.stop() for runtime in started)


def test_while_loading_it_is_busy(settings: Settings) -> None:
    """Names are known from the first second; a request is told when to try again."""
    runtime = _runtime(settings, EngineDouble())
    state = {
        "model": settings.model[0],
        "loaded": False,
        "device": "cpu",
        "compute_type": "int8",
        "requests": 0,
        "queue_seconds": 0.0,
        "speed": None,
    }
    assert runtime.health() == {
        "status": "loading",
        "ready": False,
        "version": __version__,
        **state,
        "models": [state],
    }
    assert runtime.queue_seconds == 0.0
    assert {"my-model", "whisper-1"} < set(runtime.names)
    assert runtime.unready() == "The model is still being loaded."
    with pytest.raises(Busy) as refused:
        runtime.require_ready()
    assert refused.value.retry_after == 2
    with pytest.raises(Busy):
        runtime.models[0].transcribe(io.BytesIO(), Options())
    assert runtime.stop()


def test_it_is_ready_when_the_model_is_warm(
    settings: Settings, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first request does not pay for the first run of the model. The log says where it runs, and why."""
    engine = EngineDouble()
    with caplog.at_level("INFO"):
        runtime = start(settings, engine)
    assert engine.batches
    assert "on cpu, int8 (no CUDA device found)" in caplog.text
    health = runtime.health()
    assert (health["status"], health["ready"], health["loaded"]) == ("ok", True, True)
    assert health["speed"] > 0
    assert runtime.models[0].created == int((tmp_path / "my-model/model.bin").stat().st_mtime)
    assert runtime.models[0].languages == engine.languages
    assert runtime.unready() is None
    runtime.require_ready()


@pytest.mark.parametrize(
    ("cuda_devices", "device", "model"), [(0, ("cpu", "int8"), "base"), (1, ("cuda", "float16"), "large-v3")]
)
def test_the_default_model_depends_on_the_device(cuda_devices: int, device: tuple[str, str], model: str) -> None:
    """If the settings name no model."""
    runtime = _runtime(Settings(), EngineDouble(), cuda_devices=cuda_devices)
    assert (runtime.health()["device"], runtime.health()["compute_type"]) == device
    assert runtime.model == model


def test_the_settings_reach_the_engine(settings: Settings, start: Start) -> None:
    """Folder, device, precision and threads."""
    made: list[Any] = []

    def load(folder: Path, device: Device, workers: Workers) -> Any:
        made.append((str(folder), device.name, device.compute_type, workers))
        return EngineDouble()

    changed = settings.model_copy(update={"threads": 6, "compute_type": "float32"})
    start(changed, EngineDouble(), load=load)
    assert made == [(settings.model[0], "cpu", "float32", Workers(2, 3))]


@pytest.mark.parametrize(
    "failure", [RuntimeError(CUDNN), RuntimeError(OUT_OF_MEMORY), ValueError("unsupported model")], ids=str
)
def test_a_model_that_cannot_be_loaded(settings: Settings, failure: Exception) -> None:
    """CTranslate2's error is raised for the command line; requests get a server error, not Busy."""
    runtime = _runtime(settings, EngineDouble(failure))
    with pytest.raises(type(failure)):
        runtime.start()
    runtime.failure = failure
    assert (runtime.health()["status"], runtime.health()["ready"]) == ("failed", False)
    assert runtime.unready() == "The model could not be loaded."
    with pytest.raises(EngineFailed, match="could not be loaded"):
        runtime.require_ready()


def test_a_missing_card_is_noticed_before_the_model_is_looked_for() -> None:
    """Not after a download of gigabytes: here the model does not even exist."""
    runtime = _runtime(Settings(model="/nowhere", device="cuda"), EngineDouble())
    with pytest.raises(RuntimeError, match="no CUDA device"):
        runtime.start()


def test_a_stop_does_not_wait_for_a_model_that_loads(settings: Settings) -> None:
    """A load cannot be interrupted; the process must not be torn down around it either."""
    loading, go_on = threading.Event(), threading.Event()

    def load(*_: object) -> Any:
        loading.set()
        assert go_on.wait(60)
        return EngineDouble()

    runtime = Runtime(settings, load=load, cuda_devices=0)
    thread = threading.Thread(target=runtime.start)
    thread.start()
    assert loading.wait(60)
    assert not runtime.stop()
    go_on.set()
    thread.join(60)
    assert runtime.stop()


def test_it_waits_for_a_card_whose_memory_is_in_use(
    settings: Settings, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """A game ends some time; until then the server is loading, and the log says what else would help."""
    engine, pauses = EngineDouble(*[RuntimeError(OUT_OF_MEMORY) for _ in range(3)]), list[float]()
    runtime = start(settings, engine, cuda_devices=1, pause=pauses.append)
    assert pauses == [60, 60, 60]
    assert runtime.health()["ready"]
    assert "choose a smaller model" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("message", "status", "kind"),
    [(OUT_OF_MEMORY, 503, "service_unavailable_error"), (CUDNN, 500, "server_error")],
    ids=["out of memory", "no cuDNN"],
)
async def test_the_server_survives_a_failure_of_the_device(
    settings: Settings, start: Start, voices: dict[str, Path], message: str, status: int, kind: str
) -> None:
    """The cause is not in the answer; a lack of memory is busy, not broken; the next request is answered."""
    engine = EngineDouble()
    runtime = start(settings, engine)
    app = routes.create_app(runtime, limits=Limits(max_upload=10**6))
    headers, body = multipart(file=voices["demo"].read_bytes())
    engine.failures = [RuntimeError(message)]
    failed = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert failed.status == status
    assert failed.error["type"] == kind
    assert message not in failed.body.decode()
    assert ("retry-after" in failed.headers) == (status == 503)
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert answer.json() == {"text": "Hello.", "usage": {"type": "duration", "seconds": 5}}
    assert runtime.health()["requests"] == 0


@pytest.mark.anyio
@pytest.mark.parametrize(("window", "full"), [("adaptive", False), ("exact", True)])
async def test_the_server_may_set_the_full_window_for_all_requests(
    settings: Settings, start: Start, voices: dict[str, Path], window: str, *, full: bool
) -> None:
    """With --window exact; segments come first and the transcript last."""
    engine = EngineDouble()
    runtime = start(settings.model_copy(update={"window": window}), engine)
    with voices["demo"].open("rb") as file:
        *segments, transcript = [item async for item in runtime.models[0].transcribe(file, Options())]
    assert engine.chunks[-1].full_window is full
    assert isinstance(transcript, Transcript)
    assert (transcript.text, transcript.language) == ("Hello.", "en")
    assert transcript.segments == tuple(segments)


@pytest.mark.anyio
async def test_an_idle_model_is_unloaded_and_loaded_again(
    settings: Settings, start: Start, voices: dict[str, Path]
) -> None:
    """With --idle-unload; health says whether it is loaded, and stays ready."""
    loads: list[EngineDouble] = []

    def load(*_: object) -> Any:
        loads.append(EngineDouble())
        return loads[-1]

    runtime = start(settings.model_copy(update={"idle_unload": 0.01}), EngineDouble(), load=load)
    async with asyncio.timeout(60):
        while runtime.health()["loaded"]:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)
    assert runtime.health()["ready"] is True
    items = [item async for item in runtime.models[0].transcribe(io.BytesIO(voices["demo"].read_bytes()), Options())]
    assert len(items) == 2
    assert len(loads) == 2


@pytest.mark.anyio
async def test_a_drain_lets_open_requests_finish(settings: Settings, start: Start, voices: dict[str, Path]) -> None:
    """New ones are told to try again when the server is back; those that are still open at the end, too."""
    engine = EngineDouble()
    runtime = start(settings, engine)
    engine.gate.clear()
    data = voices["demo"].read_bytes()
    first = asyncio.create_task(anext(runtime.models[0].transcribe(io.BytesIO(data), Options())))
    async with asyncio.timeout(60):
        while not runtime.open_requests:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0)
    runtime.drain(30.0)
    assert runtime.unready() == "The server is stopping."
    with pytest.raises(Busy) as refused:
        runtime.require_ready()
    assert refused.value.retry_after == 10
    assert not first.done()
    runtime.give_up()
    with pytest.raises(Busy, match="stopped or restarted"):
        await first
    engine.gate.set()


def test_the_voice_message_is_five_seconds_of_speech() -> None:
    """The recording that the self-test and the calibration decode."""
    piece = voice_message()
    assert 4.5 < piece.seconds < 5.5
    assert sum(span.seconds for span in piece.speech) > piece.seconds / 2


# The self-test


class Work:
    """A double of the scheduler: what it does now, and how it answers the self-test."""

    def __init__(self, *outcomes: object, **state: Any) -> None:
        self.requests, self.failures = 0, 0
        self.running_seconds: float | None = None
        vars(self).update(state)
        self.outcomes = list(outcomes)
        self.tests = self.closed = 0

    def admit(self) -> Work:
        """Return the ticket."""
        return self

    def submit(self, _chunks: object) -> list[Future[object]]:
        """Answer with the next outcome; without one, never."""
        self.tests += 1
        future: Future[object] = Future()
        if self.outcomes:
            outcome = self.outcomes.pop(0)
            (future.set_exception if isinstance(outcome, Exception) else future.set_result)(outcome)  # type: ignore[arg-type]
        return [future]

    def close(self) -> None:
        """Count."""
        self.closed += 1


def _self_test(work: Work, stuck_after: float = 5.0, *, when_idle: bool = False) -> SelfTest:
    return SelfTest(work, chunk(), stuck_after=stuck_after, when_idle=lambda: when_idle)  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("state", "when_idle", "outcome", "tests", "healthy"),
    [
        ({}, False, None, 0, True),
        ({}, True, None, 1, True),
        ({}, True, EngineFailed(), 1, False),
        ({}, True, Busy("memory", retry_after=1), 1, True),
        ({"failures": 1}, False, None, 1, True),
        ({"failures": 1}, False, EngineFailed(), 1, False),
        ({"requests": 1}, True, None, 0, True),
        ({"requests": 1, "failures": FAILURES_IN_A_ROW - 1}, True, None, 0, True),
        ({"requests": 1, "failures": FAILURES_IN_A_ROW}, True, None, 0, False),
        ({"running_seconds": 4.0}, True, None, 0, True),
        ({"running_seconds": 6.0}, True, None, 0, False),
        ({"running_seconds": 6.0, "requests": 1}, False, None, 0, False),
    ],
)
async def test_when_an_engine_is_healthy(
    state: dict[str, Any], outcome: Exception | None, tests: int, *, when_idle: bool, healthy: bool
) -> None:
    """Judged by its work if there is any, else by a test if there is a reason; never healthy when stuck."""
    work = Work(outcome, **state)
    assert await _self_test(work, when_idle=when_idle).healthy() is healthy
    assert work.tests == work.closed == tests


@pytest.mark.anyio
async def test_one_failed_recording_is_not_the_engines_fault() -> None:
    """It is failing after several failed batches in a row or a failed test, until a batch succeeds."""
    work = Work(None, EngineFailed())
    self_test = _self_test(work)
    for failures, failing in ((0, False), (1, False), (FAILURES_IN_A_ROW - 1, False), (FAILURES_IN_A_ROW, True)):
        work.failures = failures
        assert self_test.failing is failing
    work.failures = 1
    assert await self_test.healthy()
    assert not self_test.failing
    assert not await self_test.healthy()
    assert self_test.failing
    work.failures = 0
    assert not self_test.failing


@pytest.mark.anyio
async def test_a_self_test_without_an_answer_fails() -> None:
    """After a limited time; its chunk leaves the queue."""
    work = Work()
    assert not await _self_test(work, 0.01, when_idle=True).healthy()
    assert work.closed == 1
