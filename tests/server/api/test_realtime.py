"""The realtime route on a real socket, with OpenAI's SDK and with clients that misbehave."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import websockets.sync.client
from openai import AsyncOpenAI, OpenAI
from websockets.exceptions import ConnectionClosed, InvalidStatus

from localwhisper_client.shared.lan_ranges import LOOPBACK
from localwhisper_server.api.access_control import Rules
from localwhisper_server.api.middleware import Limits
from localwhisper_server.api.protocol import MOST_UNREAD_BYTES, HttpProtocol, WebSocketProtocol
from localwhisper_server.errors import Busy
from localwhisper_server.observer import ModelObserver
from localwhisper_server.observer import Observer as Nothing
from tests.server.driving import FakeTranscriber, make_app
from tests.server.listening import serving
from tests.server.live_double import LiveTranscriber, pcm, sound

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

SECONDS = 60.0
PREFIX = "conversation.item.input_audio_transcription."
KEY = "server-key-123456"
INTENT: Any = {"intent": "transcription"}


class Transcriber(LiveTranscriber, FakeTranscriber):
    """Files and live sessions."""

    def __init__(self, no_room: Any = None, observer: Any = None) -> None:
        FakeTranscriber.__init__(self, observer=observer or ModelObserver())
        LiveTranscriber.__init__(self, no_room)


class Observer(Nothing):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.answers: list[tuple[str, str | None, int]] = []
        self.answer = threading.Event()

    def transcribed(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        self.answers.append((method, route, status))
        self.answer.set()


class Brief(WebSocketProtocol):
    """Waits less after a broken frame than the real one, so that the tests need not wait."""

    linger_seconds = 0.2


@contextlib.contextmanager
def server(transcriber: Any = None, *, ws: Any = Brief, **given: Any) -> Iterator[str]:
    """Serve the app; give the URL of /v1 for WebSockets."""
    app = make_app(transcriber or Transcriber(), **given)
    with serving(app, http=HttpProtocol, ws=ws, ws_per_message_deflate=False) as (host, port):
        yield f"ws://{host}:{port}/v1"


@contextlib.contextmanager
def connected(url: str, query: str = "intent=transcription", **options: Any) -> Iterator[Any]:
    """Connect without the SDK."""
    with websockets.sync.client.connect(
        f"{url}/realtime?{query}", proxy=None, max_size=None, compression=None, ping_interval=None, **options
    ) as connection:
        yield connection


def refused(url: str, **options: Any) -> Any:
    """Connect; return the answer that refuses it."""
    with pytest.raises(InvalidStatus) as refusal, connected(url, **options):
        pass  # pragma: no cover
    return refusal.value.response


def receive(connection: Any) -> dict[str, Any]:
    """Return the next event."""
    return json.loads(connection.recv(timeout=SECONDS))  # type: ignore[no-any-return]


def until(connection: Any, kind: str) -> list[dict[str, Any]]:
    """Return the events up to one of a kind."""
    events = [receive(connection)]
    while not events[-1]["type"].endswith(kind):
        events.append(receive(connection))
    return events


def send(connection: Any, kind: str, **fields: Any) -> None:
    """Send an event."""
    connection.send(json.dumps({"type": kind, **fields}))


def speak(connection: Any, *stretches: float) -> None:
    """Send silence and speech in one event."""
    audio = base64.b64encode(pcm(sound(*stretches, rate=24_000))).decode()
    send(connection, "input_audio_buffer.append", audio=audio)


def converse(connection: Any) -> str:
    """Speak for a second and a half; return the transcript."""
    speak(connection, 0.5, 1.5, 1.0)
    return str(until(connection, ".completed")[-1]["transcript"])


def test_the_sdk() -> None:
    """The real client, with nothing but its base URL changed: events of its own classes, in their order."""
    observer = Observer()
    transcriber = Transcriber(observer=observer)
    with (
        server(transcriber, observer=observer) as url,
        OpenAI(base_url=url.replace("ws:", "http:"), api_key="any") as client,
    ):
        with client.realtime.connect(extra_query=INTENT) as connection:
            assert connection.recv().type == "session.created"
            audio: Any = {"input": {"transcription": {"model": "whisper-1"}, "turn_detection": {"type": "server_vad"}}}
            connection.session.update(session={"type": "transcription", "audio": audio})
            assert connection.recv().type == "session.updated"
            samples = pcm(sound(0.5, 1.5, 1.0, rate=24_000))
            for at in range(0, len(samples), 4800):
                piece = base64.b64encode(samples[at : at + 4800]).decode()
                connection.input_audio_buffer.append(audio=piece)
            kinds, said = [], ""
            for event in connection:
                kinds.append(event.type)
                if event.type == f"{PREFIX}delta":
                    said += event.delta or ""
                elif event.type == f"{PREFIX}completed":
                    assert event.transcript == said == "w0 w1 w2"
                    assert event.usage.type == "duration"
                    break
        assert observer.answer.wait(SECONDS)
    order = [kind for kind in kinds if not kind.endswith("delta")]
    assert order == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        f"{PREFIX}completed",
    ]
    assert observer.seconds == [3]
    assert observer.answers == [("GET", "/v1/realtime", 101)]


async def test_the_async_sdk_commits_by_itself() -> None:
    """Without turn detection, as wyoming-openai and LiveKit with their own detectors do."""
    transcriber = Transcriber()
    with server(transcriber) as url:
        async with (
            AsyncOpenAI(base_url=url.replace("ws:", "http:"), api_key="any") as client,
            client.realtime.connect(model="gpt-realtime-whisper", extra_query=INTENT) as connection,
        ):
            audio: Any = {"input": {"turn_detection": None}}
            await connection.session.update(session={"type": "transcription", "audio": audio})
            samples = base64.b64encode(pcm(sound(0.0, 1.0, rate=24_000))).decode()
            await connection.input_audio_buffer.append(audio=samples)
            await connection.input_audio_buffer.commit()
            async for event in connection:
                if event.type == f"{PREFIX}completed":
                    assert event.transcript == "w0 w1"
                    break
    assert (transcriber.open, transcriber.opened) == (0, 1)


# Who may connect


@pytest.mark.parametrize(
    ("headers", "subprotocols", "status"),
    [
        ({}, None, 401),
        ({"Authorization": "Bearer wrong"}, None, 401),
        ({"Authorization": f"Bearer {KEY}"}, None, 101),
        ({}, ["realtime", "openai-insecure-api-key.wrong"], 401),
        ({}, ["realtime", f"openai-insecure-api-key.{KEY}"], 101),
        ({"Origin": "https://page.example"}, ["realtime", f"openai-insecure-api-key.{KEY}"], 101),
        ({"Origin": "https://page.example"}, ["realtime"], 401),
    ],
)
def test_keys(headers: dict[str, str], subprotocols: Any, status: int) -> None:
    """The key comes in `Authorization`, or as browsers can send it; refusals have OpenAI's envelope."""
    with server(api_key=KEY) as url:
        if status == 101:
            with connected(url, additional_headers=headers, subprotocols=subprotocols) as connection:
                assert connection.subprotocol == ("realtime" if subprotocols else None)
                assert converse(connection) == "w0 w1 w2"
            return
        refusal = refused(url, additional_headers=headers, subprotocols=subprotocols)
    assert refusal.status_code == status
    assert json.loads(refusal.body)["error"]["message"]
    assert refusal.headers["x-request-id"].startswith("req_")


def test_a_refusal_is_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is logged as a warning or more."""
    with server(rules=Rules(keys=(KEY,))) as url:
        assert refused(url).status_code == 401
    assert not [line for line in caplog.records if line.name.startswith(("localwhisper", "uvicorn"))]


def test_pages_without_a_key() -> None:
    """Where no key is set, only this server's own pages may connect."""
    with server() as url:
        own = url.removesuffix("/v1").replace("ws:", "http:")
        with connected(url, additional_headers={"Origin": own}) as connection:
            assert receive(connection)["type"] == "session.created"
        assert refused(url, additional_headers={"Origin": "https://page.example"}).status_code == 403


def test_addresses() -> None:
    """An address that may not call is refused before the connection is accepted."""
    with server(rules=Rules(trusted_proxies=LOOPBACK)) as url:
        assert refused(url, additional_headers={"X-Forwarded-For": "8.8.8.8"}).status_code == 403


def test_an_address_has_so_many_sessions() -> None:
    """Sessions count among the transcriptions that one address may have open."""
    proxy = {"X-Forwarded-For": "192.168.1.7"}
    rules = Rules(trusted_proxies=LOOPBACK)
    with server(rules=rules, limits=Limits(per_address=1)) as url, contextlib.ExitStack() as stack:
        first = stack.enter_context(connected(url, additional_headers=proxy))
        assert receive(first)["type"] == "session.created"
        with connected(url, additional_headers=proxy) as second:
            refusal = receive(second)["error"]
            assert (refusal["code"], refusal["retry_after"]) == ("rate_limit_exceeded", 1)
            with pytest.raises(ConnectionClosed) as closed:
                second.recv(timeout=SECONDS)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013
        assert converse(first) == "w0 w1 w2"


def test_a_busy_engine_says_when_to_come_back() -> None:
    """An error event with a number of seconds, then a close that means the same."""
    observer = Observer()
    with (
        server(Transcriber(Busy("The server is busy.", retry_after=7)), observer=observer) as url,
        connected(url) as connection,
    ):
        refusal = receive(connection)["error"]
        assert (refusal["code"], refusal["retry_after"]) == ("server_is_overloaded", 7)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=SECONDS)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1013, "The server is busy.")
    assert observer.answer.wait(SECONDS)
    assert observer.answers == [("GET", "/v1/realtime", 503)]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("model=gpt-realtime", "intent"),
        ("intent=transcription&model=gpt-9", "model"),
        ("intent=conversation&model=x", "intent"),
    ],
)
def test_what_is_not_served(query: str, param: str) -> None:
    """A conversation, or a model that is not here: an error event that names the field, and a close."""
    with server() as url, connected(url, query) as connection:
        assert receive(connection)["error"]["param"] == param
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=SECONDS)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize("query", ["", "intent=transcription&model=whisper-1", "model=gpt-4o-transcribe"])
def test_ways_to_ask(query: str) -> None:
    """With and without `model`, which LiveKit adds; a base URL without /v1; two slashes."""
    with server() as url:
        for base in (url, url.removesuffix("/v1"), url.replace("/v1", "//v1")):
            with connected(base, query) as connection:
                assert converse(connection) == "w0 w1 w2"


LIVE = "gpt-live-transcribe"


class Two(Transcriber):
    """Has a second model, `small`."""

    def __init__(self) -> None:
        super().__init__()
        self.small = Transcriber()

    def find(self, name: str, task: str = "transcribe") -> Any:
        """Return the second by its name, the first by all others that it has."""
        return self.small if name == "small" else super().find(name, task)


def test_a_session_is_of_the_model_that_is_asked_for() -> None:
    """To its end: a name of another model is refused, and one of its own is not."""
    two = Two()
    with server(two) as url, connected(url, "intent=transcription&model=small") as connection:
        receive(connection)
        for name, answer in (
            ("small", "session.updated"),
            ("gpt-live-transcribe", "error"),
            ("base", "error"),
        ):
            audio = {"input": {"transcription": {"model": name}}}
            send(connection, "session.update", session={"type": "transcription", "audio": audio})
            assert receive(connection)["type"] == answer, name
    assert (two.opened, two.small.opened) == (0, 1)


def test_the_beta_sub_protocol() -> None:
    """A browser that asks for the beta gets its form."""
    with server() as url, connected(url, subprotocols=["realtime", "openai-beta.realtime-v1"]) as connection:  # type: ignore[arg-type]
        assert receive(connection)["type"] == "transcription_session.created"
    with server() as url, connected(url, additional_headers={"OpenAI-Beta": "realtime=v1"}) as connection:
        assert receive(connection)["type"] == "transcription_session.created"


def test_other_paths_do_not_speak_websocket() -> None:
    """A caller who asks for it is answered in HTTP, as before."""
    with server() as url, pytest.raises(InvalidStatus) as refusal:
        websockets.sync.client.connect(f"{url}/models", proxy=None)
    assert refusal.value.response.status_code == 200


# Clients that misbehave; beside each, another client is served


@contextlib.contextmanager
def unharmed(url: str) -> Iterator[None]:
    """Check that a client who was there before, and one who comes after, are served."""
    with connected(url) as before:
        receive(before)
        yield
        assert converse(before) == "w0 w1 w2"
    with connected(url) as after:
        assert converse(after) == "w0 w1 w2"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x82\x00\x00\x00\x00\xff\xff", 1007),  # text that is not UTF-8
        (b"\xf1\x80\x00\x00\x00\x00", 1002),  # reserved bits
        (b"\x83\x80\x00\x00\x00\x00", 1002),  # an unknown opcode
        (b"\x81\x01a", 1002),  # without a mask
        (b"\x81\xff\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00", 1009),  # four gigabytes announced
        (b"\x80\x80\x00\x00\x00\x00", 1002),  # a continuation of nothing
    ],
    ids=["not UTF-8", "reserved bits", "unknown opcode", "no mask", "too long", "continuation"],
)
def test_broken_frames(frame: bytes, code: int) -> None:
    """Each ends its own connection, with the code for it."""
    with server() as url, unharmed(url), connected(url) as connection:
        receive(connection)
        connection.socket.sendall(frame)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=SECONDS)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code


def test_broken_events_are_answered() -> None:
    """Whatever is in a frame, the session goes on."""
    with server() as url, unharmed(url), connected(url) as connection:
        receive(connection)
        for message in ("{", "[]", "null", b"\x00binary", '{"type": "x"}', '{"type": "input_audio_buffer.append"}'):
            connection.send(message)
            assert receive(connection)["type"] == "error"
        assert converse(connection) == "w0 w1 w2"


def test_the_largest_append() -> None:
    """15 MiB of base64 are taken, four minutes of sound; more is refused by an event, much more by a close."""
    with server() as url, unharmed(url), connected(url) as connection:
        receive(connection)
        silence = "A" * (15 * 2**20)
        send(connection, "input_audio_buffer.append", audio=silence)
        assert converse(connection) == "w0 w1 w2"
        send(connection, "input_audio_buffer.append", audio=silence + "AAAA")
        assert receive(connection)["error"]["code"] == "string_above_max_length"
        with contextlib.suppress(ConnectionClosed):  # perhaps while it still sends
            connection.send("A" * (17 * 2**20))
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=SECONDS)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


@contextlib.contextmanager
def unread_connection(url: str) -> Iterator[socket.socket]:
    """Open a session on a socket from which nothing more is read than the answer's first byte."""
    with socket.socket() as raw:
        host, port = url.removeprefix("ws://").removesuffix("/v1").split(":")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect((host, int(port)))
        raw.sendall(
            f"GET /v1/realtime?intent=transcription HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert raw.recv(1) == b"H"
        yield raw


def test_a_client_that_stops_reading_is_cut_off() -> None:
    """Its events wait, nothing more is taken from it, and it is cut off in the end."""
    lost = threading.Event()

    class Impatient(WebSocketProtocol):
        write_seconds = 0.1

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            # Otherwise the kernel takes megabytes of events first.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.set()

    transcriber = Transcriber()
    with server(transcriber, ws=Impatient) as url, unharmed(url), unread_connection(url) as raw:
        frame = b"\x81\x81\x00\x00\x00\x00{"  # each is answered by an error event
        raw.settimeout(SECONDS)
        with contextlib.suppress(OSError):
            while not lost.is_set():
                raw.sendall(frame * 1000)
        assert lost.wait(SECONDS)


@contextlib.contextmanager
def watched(measure: Any) -> Iterator[tuple[str, list[int]]]:
    """Serve; collect what `measure` returns for a connection after each read of it and each part of a read."""
    found: list[int] = []

    class Watched(WebSocketProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            found.append(measure(self))

        def handle_events(self) -> None:
            super().handle_events()
            found.append(measure(self))

    with server(ws=Watched) as url:
        yield url, found


def test_small_frames_wait_their_turn() -> None:
    """Forty thousand events in one read are taken some hundred at a time, with other clients between them."""
    with watched(lambda it: it.queue.qsize()) as (url, waiting), unharmed(url), connected(url) as connection:
        receive(connection)
        frames = b"\x81\x80\x00\x00\x00\x00" * 40_000
        sending = threading.Thread(target=connection.socket.sendall, args=(frames,))
        sending.start()
        for _ in range(2000):
            assert receive(connection)["type"] == "error"
        connection.socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            sending.join()
    assert 1 < max(waiting) < 1000


def test_pings_are_not_answered_faster_than_the_answers_are_read() -> None:
    """Answers that wait would fill the memory."""
    with watched(lambda it: it.transport.get_write_buffer_size()) as (url, unread), unread_connection(url) as raw:
        pings = (b"\x89\xfd\x00\x00\x00\x00" + bytes(125)) * 500
        raw.sendall(pings)
        while not any(unread):
            pass
        raw.settimeout(0.5)
        with contextlib.suppress(OSError):
            for _ in range(100):
                raw.sendall(pings)
    assert 0 < max(unread) < 2 * MOST_UNREAD_BYTES


def test_a_message_of_many_small_fragments() -> None:
    """A message has a limit of bytes, but an empty fragment has none."""
    with server() as url, unharmed(url), connected(url) as connection:
        receive(connection)
        connection.send(iter(['{"type": "', *["fragment"] * 1000, '"}']))
        assert receive(connection)["type"] == "error"
        connection.socket.sendall(b"\x01\x80\x00\x00\x00\x00" + b"\x00\x80\x00\x00\x00\x00" * 1000)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=SECONDS)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_clients_that_hang_up() -> None:
    """At every state, with and without a closing frame: no session, task or thread is left."""

    def nothing(connection: Any) -> None:
        """Hang up at once."""

    def created(connection: Any) -> None:
        receive(connection)

    def speaking(connection: Any) -> None:
        speak(connection, 0.1, 0.5)

    def committed(connection: Any) -> None:
        speak(connection, 0.1, 0.5)
        send(connection, "input_audio_buffer.commit")

    def half_a_frame(connection: Any) -> None:
        connection.socket.sendall(b"\x81\xfe\xff\xff\x00\x00\x00\x00{")

    def completed(connection: Any) -> None:
        converse(connection)

    def open_tasks() -> set[int]:
        gc.collect()
        return {id(task) for task in gc.get_objects() if isinstance(task, asyncio.Task) and not task.done()}

    transcriber, others = Transcriber(), open_tasks()
    with server(transcriber) as url:
        with connected(url) as connection:
            converse(connection)
        threads = threading.active_count()
        for number in range(24):
            state = (nothing, created, speaking, committed, half_a_frame, completed)[number % 6]
            with connected(url, close_timeout=0.1) as connection:
                state(connection)
                if number % 2:
                    connection.socket.shutdown(socket.SHUT_RDWR)
        with connected(url) as connection:
            assert converse(connection) == "w0 w1 w2"
        assert threading.active_count() <= threads + 2
    assert transcriber.open == 0
    assert transcriber.opened == 26
    assert not open_tasks() - others


def closed_code(connection: Any) -> int | None:
    """Read to the end; return the code of the closing frame."""
    with contextlib.suppress(ConnectionClosed):
        for _ in connection:
            pass
    return connection.close_code  # type: ignore[no-any-return]


def test_a_stop_says_what_was_being_spoken() -> None:
    """The speech so far is committed and its text sent, then 1012; a session without speech is closed at once."""
    transcriber = Transcriber()
    with contextlib.ExitStack() as stack:
        with server(transcriber) as url:
            speaking, silent = (stack.enter_context(connected(url)) for _ in range(2))
            speak(speaking, 0.5, 1.5)
            until(speaking, "speech_started")
            until(silent, "session.created")
        assert until(speaking, ".completed")[-1]["transcript"] == "w0 w1 w2"
        assert [closed_code(connection) for connection in (speaking, silent)] == [1012, 1012]
    assert transcriber.open == 0


def test_a_stop_does_not_wait_for_a_model_that_is_stuck() -> None:
    """The connection is closed with 1012, and the server ends."""

    class Stuck(Transcriber):
        async def decode(self, *_: Any, **__: Any) -> None:
            await asyncio.Event().wait()

    class Hasty(Brief):
        stop_seconds = 0.1

    transcriber = Stuck()
    with contextlib.ExitStack() as stack:
        with server(transcriber, ws=Hasty) as url:
            connection = stack.enter_context(connected(url))
            speak(connection, 0.5, 1.5)
            until(connection, "speech_started")
        assert closed_code(connection) == 1012
    assert transcriber.open == 0


def test_an_outdated_pass_is_given_up() -> None:
    """The pass that hears all of a phrase does not wait for one that began before its end."""

    class SlowAtFirst(Transcriber):
        passes = 0

        async def decode(self, samples: Any, speech: Any, decoding: Any, *, thorough: bool) -> Any:
            self.passes += 1
            if self.passes == 1:
                began.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    given_up.set()
            return await super().decode(samples, speech, decoding, thorough=thorough)

    began, given_up, transcriber = threading.Event(), threading.Event(), SlowAtFirst()
    with server(transcriber) as url, connected(url) as connection:
        speak(connection, 0.5, 1.0)
        assert began.wait(SECONDS)
        speak(connection, 0.0, 0.5, 1.0)
        assert until(connection, ".completed")[-1]["transcript"] == "w0 w1 w2"
        assert given_up.wait(SECONDS)
    assert transcriber.open == 0


def test_a_client_that_says_the_server_restarts() -> None:
    """The code of a client's closing frame changes nothing: its session ends."""
    transcriber = Transcriber()
    with server(transcriber) as url:
        with connected(url) as connection:
            speak(connection, 0.5, 1.5)
            connection.close(1012)
        with connected(url) as connection:
            assert converse(connection) == "w0 w1 w2"
    assert transcriber.open == 0


def test_several_sessions_at_once() -> None:
    """Each gets its own words."""
    with server() as url, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(url)) for _ in range(8)]
        for number, connection in enumerate(connections, 1):
            speak(connection, 0.2, number / 2, 1.0)
        for number, connection in enumerate(connections, 1):
            text = until(connection, ".completed")[-1]["transcript"]
            assert text == " ".join(f"w{word}" for word in range(number))
