"""The Wyoming protocol, by the package's own client on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tempfile
import wave
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest
from wyoming.asr import Transcribe, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.asr import Transcript as TranscriptEvent
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from localwhisper_client.shared.lan_ranges import LOOPBACK
from localwhisper_server import wyoming
from localwhisper_server.errors import Busy
from localwhisper_server.observer import Observer
from tests.server.driving import SPOKEN, TEXT, WHOLE, FakeTranscriber

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from wyoming.event import Event

pytestmark = pytest.mark.anyio

SAMPLES = bytes(range(256)) * 25  # 0.2 s of 16 kHz


@dataclass
class Answers(Observer):
    """Keeps the status of each utterance."""

    statuses: list[int] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        assert (method, route) == ("OTHER", "wyoming")
        self.statuses.append(status)
        self.told.set()


@contextlib.asynccontextmanager
async def connected(
    transcriber: FakeTranscriber | None = None, observer: Observer | None = None, **given: Any
) -> AsyncIterator[AsyncTcpClient]:
    """A client of a server around the transcriber."""
    given = {"host": "127.0.0.1", "port": 0, "allow_from": LOOPBACK, "most_bytes": 100_000} | given
    service = wyoming.Service(transcriber or FakeTranscriber(), observer or Answers(), **given)
    async with service.listening() as port, AsyncTcpClient("127.0.0.1", port) as client:
        yield client


async def speak(client: AsyncTcpClient, *chunks: bytes, rate: int = 16_000, start: bool = True, **asked: Any) -> None:
    """Send an utterance as Home Assistant does."""
    await client.write_event(Transcribe(**asked).event())
    if start:
        await client.write_event(AudioStart(rate, 2, 1).event())
    for chunk in chunks or (SAMPLES, SAMPLES):
        await client.write_event(AudioChunk(rate, 2, 1, chunk).event())
    await client.write_event(AudioStop().event())


async def read(client: AsyncTcpClient) -> Event:
    """Return the next event, soon."""
    event = await asyncio.wait_for(client.read_event(), 60)
    assert event is not None
    return event


async def test_info() -> None:
    """The served model, with the codes that Home Assistant knows, before any audio and while the model loads."""
    async with connected(FakeTranscriber(not_ready=Busy("loading", retry_after=1))) as client:
        await client.write_event(Describe().event())
        (program,) = Info.from_event(await read(client)).asr
        await client.write_event(Ping("hello").event())
        assert Pong.from_event(await read(client)).text == "hello"
    (model,) = program.models
    assert (program.name, model.name) == ("localwhisper", "base")
    assert program.supports_transcript_streaming
    assert {"en", "de", "ko"} <= set(model.languages)


@pytest.mark.parametrize("start", [True, False], ids=["audio-start", "chunks alone"])
async def test_an_utterance(*, start: bool) -> None:
    """The words come as they are found, then as a whole; the same connection takes another utterance."""
    transcriber, observer = FakeTranscriber(), Answers()
    async with connected(transcriber, observer) as client:
        for _ in range(2):
            await speak(client, start=start)
            events = [await read(client) for _ in range(5)]
            assert [event.type for event in events] == [
                "transcript-start", "transcript-chunk", "transcript-chunk", "transcript", "transcript-stop",
            ]  # fmt: skip
            assert TranscriptStart.is_type(events[0].type)
            assert "".join(TranscriptChunk.from_event(event).text for event in events[1:3]) == TEXT
            assert TranscriptEvent.from_event(events[3]).text == TEXT
            assert TranscriptStop.is_type(events[4].type)
    with wave.open(io.BytesIO(transcriber.uploads[0])) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (16_000, 2, 1)
        assert file.readframes(10_000) == SAMPLES * 2
    assert observer.statuses == [200, 200]
    assert all(source.closed for source in transcriber.sources)


@pytest.mark.parametrize(
    ("asked", "language"),
    [({"language": "en-US"}, "en"), ({"language": "de"}, "de"), ({"language": "tlh"}, None), ({}, None)],
)
async def test_the_language_asked_for(asked: dict[str, Any], language: str | None) -> None:
    """Tags are understood; a language that the model does not know is detected."""
    transcriber = FakeTranscriber()
    async with connected(transcriber) as client:
        await speak(client, **asked)
        while (await read(client)).type != "transcript-stop":
            pass
    assert transcriber.asked[0].decoding.language == language


async def test_the_model_asked_for() -> None:
    """Each is listed and answers to its name; without a name, the first does."""
    second = FakeTranscriber(names=("small",))

    class Two(FakeTranscriber):
        models = property(lambda self: [self, second])  # type: ignore[assignment]

        def find(self, name: str, task: str = "transcribe") -> FakeTranscriber:
            """Return the second by its name."""
            return second if name == "small" else super().find(name, task)

    first = Two()
    async with connected(first) as client:
        await client.write_event(Describe().event())
        (program,) = Info.from_event(await read(client)).asr
        assert [model.name for model in program.models] == ["base", "small"]
        for asked in ({"name": "small"}, {}):
            await speak(client, **asked)
            while (await read(client)).type != "transcript-stop":
                pass
    assert (len(first.uploads), len(second.uploads)) == (1, 1)


async def test_names_and_terms_are_keywords() -> None:
    """Names of rooms and devices, as Home Assistant sends them, names first."""
    transcriber = FakeTranscriber()
    async with connected(transcriber) as client:
        await speak(client, transcript_names=["Küche"], transcript_terms=["lamp", "x" * 9000])
        while (await read(client)).type != "transcript-stop":
            pass
    hotwords = transcriber.asked[0].decoding.hotwords
    assert hotwords.startswith("Küche, lamp, xxx")
    assert len(hotwords) == wyoming.LONGEST_HINT


async def test_nothing_was_said() -> None:
    """An utterance without samples is empty; the model is not asked."""
    transcriber = FakeTranscriber()
    async with connected(transcriber) as client:
        await client.write_event(AudioStart(16_000, 2, 1).event())
        await client.write_event(AudioStop().event())
        assert TranscriptEvent.from_event(await read(client)).text == ""
    assert not transcriber.uploads


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [(Busy("The queue is full.", retry_after=2), 503, "The queue is full"), (RuntimeError("secret"), 500, "server")],
)
async def test_failures_are_error_events(failure: Exception, status: int, message: str) -> None:
    """The connection stays; nothing of the inside is told."""
    observer = Answers()
    transcriber = FakeTranscriber([failure])
    async with connected(transcriber, observer) as client:
        await speak(client)
        assert TranscriptStart.is_type((await read(client)).type)
        error = Error.from_event(await read(client))
        assert message in error.text
        assert "secret" not in error.text
        transcriber.items = (*SPOKEN, WHOLE)
        await speak(client)
        while (await read(client)).type != "transcript-stop":
            pass
    assert observer.statuses == [status, 200]


async def test_a_model_that_is_not_served() -> None:
    """The error names those that are."""
    async with connected() as client:
        await speak(client, name="gpt-5")
        assert "base" in Error.from_event(await read(client)).text


async def test_too_much_audio() -> None:
    """A recording over the limit is refused once, and what is left of it is not taken for another one."""
    transcriber = FakeTranscriber()
    async with connected(transcriber, most_bytes=10_000) as client:
        await speak(client, *[SAMPLES] * 3)
        assert "--max-upload" in Error.from_event(await read(client)).text
        await speak(client, SAMPLES)
        assert TranscriptStart.is_type((await read(client)).type)
    assert len(transcriber.uploads) == 1


async def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client is told, and may go on."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    async with connected(most_bytes=100_000_000) as client:
        for _ in range(5):  # the first megabytes are kept in memory
            await client.write_event(AudioChunk(16_000, 2, 1, bytes(1_000_000)).event())
        assert "no room" in Error.from_event(await read(client)).text
        await client.write_event(Ping("still there?").event())
        assert Pong.is_type((await read(client)).type)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
        b'{"type": "audio-chunk", "payload_length": 999999999999}\n',
        b'{"type": "audio-chunk", "payload_length": -5}\n',
        b'{"type": "audio-chunk", "data_length": "5"}\n',
        b'{"type": "audio-chunk"}\n',
        b'{"type": "audio-start", "data": {"rate": "x", "width": 2, "channels": 1}}\n',
        b'{"type": "audio-start", "data": {"rate": 1e999, "width": 2, "channels": 1}}\n',
        b'{"type": "transcribe", "data": {"name": ["base"]}}\n',
        b'{"type": "transcribe", "data": {"transcript_names": 7}}\n',
        b'{"type": "transcribe", "data": {"name": "\\ud800"}}\n{"type": "audio-stop"}\n',
        b"[" * 60_000 + b"\n",
        b"x" * 100_000,
    ],
    ids=lambda sent: repr(sent[:60]),
)
async def test_what_is_no_event(sent: bytes) -> None:
    """It is answered by an error, and the connection is closed."""
    service = wyoming.Service(FakeTranscriber(), Answers(), "127.0.0.1", 0, LOOPBACK, 1000)
    async with service.listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 60)
        assert json.loads(answer.splitlines()[0])["type"] == "error"
        writer.close()


async def test_audio_that_no_file_can_hold() -> None:
    """Such as three kilohertz of nine channels."""
    async with connected() as client:
        await client.write_event(AudioStart(3000, 9, 9).event())
        assert "cannot be decoded" in Error.from_event(await read(client)).text


async def test_a_client_that_leaves_stops_the_work() -> None:
    """The transcription is cancelled, and its recording closed."""
    never, observer = asyncio.Event(), Answers()
    transcriber = FakeTranscriber([never])
    async with connected(transcriber, observer) as client:
        await speak(client)
        await asyncio.wait_for(transcriber.reached.wait(), 60)
        await client.disconnect()
        await asyncio.wait_for(observer.told.wait(), 60)
    assert observer.statuses == [0]
    assert transcriber.closed == 1


async def test_what_comes_during_the_work_is_answered_after_it() -> None:
    """A client may ask for the next thing before it has read the transcript."""
    go = asyncio.Event()
    transcriber = FakeTranscriber([go, *SPOKEN, WHOLE])
    async with connected(transcriber) as client:
        await speak(client)
        await client.write_event(Ping("still there?").event())
        await asyncio.wait_for(transcriber.reached.wait(), 60)
        go.set()
        kinds = [(await read(client)).type for _ in range(6)]
    assert kinds[-2:] == ["transcript-stop", "pong"]


async def test_addresses_that_may_not_call() -> None:
    """As for the API: this machine, and the ranges of --allow-from."""
    for allowed, first in (((ip_network("10.0.0.0/8"),), b""), (LOOPBACK, b"{")):
        service = wyoming.Service(FakeTranscriber(), Answers(), "127.0.0.1", 0, allowed, 1000)
        async with service.listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b'{"type": "describe"}\n')
            with contextlib.suppress(ConnectionError):
                assert (await asyncio.wait_for(reader.read(1), 60)) == first
            writer.close()


async def test_one_address_cannot_take_all_connections() -> None:
    """The next one is closed at once; one that ends makes room for another."""
    service = wyoming.Service(FakeTranscriber(), Answers(), "127.0.0.1", 0, LOOPBACK, 1000)

    async def answered(client: AsyncTcpClient) -> bool:
        with contextlib.suppress(OSError):
            await client.write_event(Describe().event())
            return await asyncio.wait_for(client.read_event(), 60) is not None
        return False

    async with service.listening() as port, contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncTcpClient("127.0.0.1", port))
            for _ in range(wyoming.MOST_PER_ADDRESS + 1)
        ]
        assert [await answered(client) for client in clients] == [True] * wyoming.MOST_PER_ADDRESS + [False]
        await clients[0].disconnect()
        assert await answered(clients[1])  # by then the server has seen the end of the first
        assert await answered(await stack.enter_async_context(AsyncTcpClient("127.0.0.1", port)))


async def test_a_silent_client_is_let_go() -> None:
    """Its connection counts towards the limit."""
    async with connected(silent_seconds=0.05) as client:
        assert await asyncio.wait_for(client.read_event(), 60) is None


async def test_a_port_in_use_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The API goes on without it."""
    service = wyoming.Service(FakeTranscriber(), Answers(), "127.0.0.1", 0, LOOPBACK, 1000)
    async with service.listening() as port, replace(service, port=port).listening() as none:
        assert none == 0
    assert f"no Wyoming on 127.0.0.1 port {port}" in caplog.text
