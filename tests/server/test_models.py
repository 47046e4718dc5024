"""Several models on one server, with engine doubles: which of them answers, and what waits for what."""

from __future__ import annotations

import asyncio
import io
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client.shared.openai_models import NAMES as OPENAI_NAMES
from localwhisper_server.api import routes
from localwhisper_server.errors import UnknownModel
from localwhisper_server.runtime import Runtime
from localwhisper_server.settings import Settings
from localwhisper_server.types import Options, Segment, Transcript
from localwhisper_server.whisper.chunks import ChunkResult
from tests.server.driving import call, multipart
from tests.server.engine_double import OUT_OF_MEMORY, SECONDS, EngineDouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

FIRST, SECOND = "large-v3-turbo", "my-small"


class Named(EngineDouble):
    """An engine that writes its model's name into each chunk's text, and can be unloaded and loaded again."""

    def __init__(self, device: Card, name: str) -> None:
        super().__init__(answer=self._named)
        self.device, self.name = device, name
        self.languages = device.languages.get(name, EngineDouble.languages)

    def _named(self, chunk: Any) -> ChunkResult:
        assert self.name in self.device.in_memory
        return ChunkResult("en", (Segment(chunk.offset, chunk.offset + chunk.seconds, f" {self.name}"),))

    def unload(self) -> bool:
        """Free the memory."""
        self.device.in_memory.remove(self.name)
        return True

    def reload(self) -> None:
        """Take the memory."""
        self.device.put(self.name)


class Card:
    """A device with room for so many models. Loading waits while `gate` is closed."""

    def __init__(self, room: int = 9) -> None:
        self.room = room
        self.in_memory: list[str] = []
        self.most = 0
        self.loads: Counter[str] = Counter()
        self.engines: dict[str, Named] = {}
        self.languages: dict[str, frozenset[str]] = {}
        self.gate, self.loading = threading.Event(), threading.Semaphore(0)
        self.gate.set()

    def load(self, folder: Path, *_: object) -> Any:
        """Make an engine."""
        self.put(folder.name)
        return self.engines.setdefault(folder.name, Named(self, folder.name))

    def put(self, name: str) -> None:
        """Load a model's weights."""
        self.loading.release()
        assert self.gate.wait(SECONDS)
        if len(self.in_memory) >= self.room:
            raise RuntimeError(OUT_OF_MEMORY)
        self.in_memory.append(name)
        self.loads[name] += 1
        self.most = max(self.most, len(self.in_memory))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Runtime]]:
    """Give a function that starts a runtime with two models on a card; it is stopped after the test."""
    started: list[Runtime] = []

    def start(card: Card, *names: str, cuda_devices: int = 0, self_test: bool = False, **options: Any) -> Runtime:
        folders = []
        for name in names or (FIRST, SECOND):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (folder / "model.bin").touch()
            folders.append(str(folder))
        settings = Settings(model=folders, port=0, **options)
        started.append(Runtime(settings, load=card.load, cuda_devices=cuda_devices, self_test=self_test))
        started[-1].start()
        return started[-1]

    yield start
    assert all(runtime.stop() for runtime in started)


@pytest.fixture
def voice(voices: dict[str, Path]) -> bytes:
    """Give a voice message."""
    return voices["demo"].read_bytes()


async def text(runtime: Runtime, name: str, sound: bytes, **options: Any) -> str:
    """Transcribe with a model."""
    items = [item async for item in runtime.find(name).transcribe(io.BytesIO(sound), Options(**options))]
    assert isinstance(items[-1], Transcript)
    return items[-1].text


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0.001)


async def test_each_model_answers_to_its_names(start: Any, voice: bytes) -> None:
    """OpenAI's names mean the first; an unknown name gets a 404 that lists both."""
    app = routes.create_app(start(Card()))
    for name, answers in (
        *((name, FIRST) for name in ("", "whisper-1", "whisper", FIRST, "turbo", "openai/whisper-large-v3-turbo")),
        (SECOND, SECOND),
    ):
        headers, body = multipart(("model", name), file=voice)
        assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).json()["text"] == answers
    headers, body = multipart(("model", "medium"), file=voice)
    refused = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert refused.status == 404
    assert SECOND in refused.error["message"]
    assert FIRST in refused.error["message"]


async def test_a_size_of_a_later_model_is_not_an_alias_of_the_first(start: Any) -> None:
    """Other services' names for Whisper mean the first model, unless another one has that name."""
    runtime = start(Card(), "base", "faster-whisper-small", "base")
    assert [model.names[0] for model in runtime.models] == ["base", "faster-whisper-small"]
    names = [("openai/whisper-small", 1), ("openai/whisper-medium", 0), ("whisper-base", 0), ("small", 1)]
    for name, model in [*names, ("gpt-live-transcribe", 0), ("openai/gpt-realtime-whisper", 0)]:
        assert runtime.find(name) is runtime.models[model], name
    with pytest.raises(UnknownModel):
        runtime.find("medium")
    assert runtime.names == ("base", *OPENAI_NAMES, "faster-whisper-small", "small")


async def test_the_list_says_what_each_model_can_do(start: Any) -> None:
    """In fields that the SDKs ignore; `/health` says which models are in memory."""
    card = Card()
    card.languages = {SECOND: frozenset({"en"})}
    runtime = start(card)
    app = routes.create_app(runtime)
    listed = {entry["id"]: entry for entry in (await call(app, "GET", "/v1/models")).json()["data"]}
    assert next(iter(listed)) == FIRST
    assert {*listed} == {FIRST, "turbo", *OPENAI_NAMES, SECOND}
    assert listed[SECOND]["languages"] == ["en"]
    assert "de" in listed["whisper-1"]["languages"]
    assert not listed[FIRST]["can_translate"]
    health = (await call(app, "GET", "/health")).json()
    assert [(each["model"].rsplit("/", 1)[-1], each["loaded"]) for each in health["models"]] == [
        (FIRST, True),
        (SECOND, False),
    ]
    assert health["model"] == health["models"][0]["model"]
    assert health["loaded"]


@pytest.mark.parametrize(
    ("models", "languages", "answers"),
    [
        ((FIRST, SECOND), {}, SECOND),
        ((FIRST, SECOND), {SECOND: frozenset({"en"})}, FIRST),
        (("base.en", "distil-large-v3", SECOND), {"base.en": frozenset({"en"})}, SECOND),
        ((SECOND, "base"), {}, SECOND),
    ],
)
async def test_a_translation_goes_to_a_model_that_can(
    models: tuple[str, ...], languages: Any, answers: str, start: Any, voice: bytes
) -> None:
    """Turbo and English-only models cannot; without one that can, the model that was asked for does what it can."""
    card = Card()
    card.languages = languages
    app = routes.create_app(start(card, *models))
    headers, body = multipart(file=voice)
    assert (await call(app, "POST", "/v1/audio/translations", headers, body)).json()["text"] == answers
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).json()["text"] == models[0]


async def test_a_model_is_loaded_when_it_is_asked_for(start: Any, voice: bytes) -> None:
    """At the start each is loaded once, to see that it works, and the first stays. Its vocabulary is kept."""
    card = Card()
    runtime = start(card)
    assert card.in_memory == [FIRST]
    assert card.most == 1
    assert await text(runtime, SECOND, voice) == SECOND
    assert card.in_memory == [FIRST, SECOND]
    assert card.loads == {FIRST: 1, SECOND: 2}
    assert await text(runtime, SECOND, voice) == SECOND
    assert card.loads == {FIRST: 1, SECOND: 2}


async def test_a_message_on_a_loaded_model_waits_for_no_load(start: Any, voice: bytes) -> None:
    """However long the other's load takes."""
    card = Card()
    runtime = start(card)
    card.gate.clear()
    other = asyncio.create_task(text(runtime, SECOND, voice))
    await asyncio.to_thread(card.loading.acquire, timeout=SECONDS)
    for prompt in ("one", "two", "three"):
        async with asyncio.timeout(SECONDS):
            assert await text(runtime, FIRST, voice + prompt.encode()) == FIRST
    assert not other.done()
    assert runtime.unready() is None
    card.gate.set()
    assert await other == SECOND


@pytest.mark.parametrize("limit", ["option", "device"])
async def test_two_models_asked_alternately_with_memory_for_one(limit: str, start: Any, voice: bytes) -> None:
    """Every request of eight clients is answered by its model, and there is never more than one in memory."""
    card = Card(room=1)
    runtime = start(card, cuda_devices=int(limit == "device"), max_loaded=int(limit == "option"))

    async def client(number: int) -> None:
        for step in range(6):
            name = (FIRST, SECOND)[(number + step) % 2]
            assert await text(runtime, name, voice + f"{number} {step}".encode()) == name

    async with asyncio.timeout(6 * SECONDS):
        await asyncio.gather(*(client(number) for number in range(8)))
    assert card.most == 1
    assert min(card.loads.values()) > 2


async def test_messages_are_finished_before_their_model_is_unloaded(start: Any, voice: bytes) -> None:
    """A message that comes while the model is in memory does not wait for the other's load."""
    card = Card(room=1)
    runtime = start(card, max_loaded=1)
    engine = card.engines[FIRST]
    engine.close_gate()
    first = [asyncio.create_task(text(runtime, FIRST, voice + bytes([number]))) for number in range(2)]
    await asyncio.to_thread(engine.wait)
    other = asyncio.create_task(text(runtime, SECOND, voice))
    await until(lambda: runtime.models[1].requests)
    first += [asyncio.create_task(text(runtime, FIRST, voice + bytes([number, number]))) for number in range(2)]
    await until(lambda: runtime.models[0].requests == 4)
    card.gate.clear()
    engine.gate.set()
    async with asyncio.timeout(SECONDS):
        assert await asyncio.gather(*first) == [FIRST] * 4
    assert not other.done()
    card.gate.set()
    assert await other == SECOND
    assert card.in_memory == [SECOND]


async def test_a_model_stays_for_a_message_that_is_not_admitted_yet(start: Any, voice: bytes) -> None:
    """The model was asked for, and the upload is still to be hashed."""
    model = start(Card(room=1), max_loaded=1).models[0]
    items = model.transcribe(io.BytesIO(voice), Options())
    assert not model.busy
    assert not model.finish_and_unload()
    assert [item async for item in items][-1].text == FIRST
    await until(model.finish_and_unload)
    assert not model.health()["loaded"]
    model.resume()


async def test_a_drain_and_a_stop_are_of_all_models(start: Any, voice: bytes) -> None:
    """Requests of both are counted and finished."""
    card = Card()
    runtime = start(card)
    assert await text(runtime, SECOND, voice) == SECOND
    for engine in card.engines.values():
        engine.close_gate()
    tasks = [asyncio.create_task(text(runtime, name, voice + b"!")) for name in (FIRST, SECOND)]
    for engine in card.engines.values():
        await asyncio.to_thread(engine.wait)
    assert runtime.open_requests == runtime.health()["requests"] == 2
    assert [each["requests"] for each in runtime.health()["models"]] == [1, 1]
    runtime.drain(30.0)
    assert runtime.unready() == "The server is stopping."
    for engine in card.engines.values():
        engine.gate.set()
    assert await asyncio.gather(*tasks) == [FIRST, SECOND]


async def test_idle_models_are_unloaded(start: Any, voice: bytes) -> None:
    """Each by itself, after --idle-unload seconds."""
    card = Card()
    runtime = start(card, idle_unload=0.01)
    assert await text(runtime, SECOND, voice) == SECOND
    await until(lambda: not card.in_memory)
    assert [each["loaded"] for each in runtime.health()["models"]] == [False, False]
    assert runtime.unready() is None
    assert await text(runtime, FIRST, voice) == FIRST


async def test_a_self_test_loads_no_model(start: Any) -> None:
    """A model in memory is tested when idle; one that is not stays out of memory, and counts as healthy."""
    card = Card()
    runtime = start(card, self_test=True)
    tested = {name: len(engine.batches) for name, engine in card.engines.items()}
    assert await runtime.healthy()
    assert {name: len(engine.batches) for name, engine in card.engines.items()} == tested | {FIRST: tested[FIRST] + 1}
    assert card.in_memory == [FIRST]


async def test_a_full_queue_of_one_model_refuses_none_of_another(start: Any, voice: bytes) -> None:
    """Each has its own share; the server is ready as long as one has room."""
    card = Card()
    runtime = start(card, queue=0, batch=1)
    engine = card.engines[FIRST]
    engine.close_gate()
    task = asyncio.create_task(text(runtime, FIRST, voice))
    await asyncio.to_thread(engine.wait)
    app = routes.create_app(runtime)
    headers, body = multipart(file=voice + b"!")
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).status == 503
    assert (await call(app, "GET", "/ready")).status == 200
    assert await text(runtime, SECOND, voice) == SECOND
    engine.gate.set()
    assert await task == FIRST
