"""The app without a socket: a double of the transcriber, a bare ASGI caller, and a transport for the SDK."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2

from localwhisper_client.shared.languages import NAMES
from localwhisper_client.shared.openai_models import NAMES as OPENAI_NAMES
from localwhisper_server.api.access_control import Rules
from localwhisper_server.api.middleware import Limits
from localwhisper_server.api.routes import create_app
from localwhisper_server.errors import ServerError, UnknownModel
from localwhisper_server.observer import ModelObserver
from localwhisper_server.types import Segment, TokenLogprob, Transcript, Word
from localwhisper_server.whisper.model_names import HABITUAL_NAMES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from starlette.types import ASGIApp

    from localwhisper_server.types import Options

LIMIT = 20_000_000
SPOKEN = (
    Segment(
        0.0,
        1.5,
        " Good morning,",
        tokens=(50364, 1, 50439),
        avg_logprob=-0.25,
        words=(Word(" Good", 0.0, 0.5), Word(" morning,", 0.5, 1.5)),
        logprobs=(TokenLogprob(b" Good", -0.125), TokenLogprob(b" morning,", -0.5)),
    ),
    Segment(
        1.5,
        2.5,
        " Zoë.",
        tokens=(50439, 2, 50489),
        words=(Word(" Zoë.", 1.5, 2.5),),
        logprobs=(TokenLogprob(" Zoë.".encode(), -0.25),),
    ),
)
WHOLE = Transcript("transcribe", "en", 2.5, SPOKEN)
TEXT = "Good morning, Zoë."
NOTHING = Transcript("transcribe", None, 3.0)


@dataclass
class FakeTranscriber:
    """Yields `items` in order, raises exceptions among them and waits for events; keeps what it was asked."""

    items: Sequence[Segment | Transcript | Exception | asyncio.Event] = (*SPOKEN, WHOLE)
    names: tuple[str, ...] = ("base", "org/base", *OPENAI_NAMES)
    aliases: frozenset[str] = HABITUAL_NAMES
    created: int = 1_700_000_000
    languages: frozenset[str] = frozenset(NAMES)
    not_ready: ServerError | None = None
    no_room: ServerError | None = None
    queue_seconds: float = 0.0
    uploads: list[bytes] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    asked: list[Options] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    closed: int = 0

    async def transcribe(self, source: Any, options: Options) -> AsyncGenerator[Segment | Transcript]:
        """Play the items."""
        self.uploads.append(source.read())
        self.sources.append(source)
        self.asked.append(options)
        try:
            for item in self.items:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, asyncio.Event):
                    self.reached.set()
                    await item.wait()
                else:
                    yield item
        finally:
            self.closed += 1
            source.close()  # as the real one does

    can_translate: bool = True
    observer: ModelObserver = field(default_factory=ModelObserver)

    @property
    def models(self) -> list[FakeTranscriber]:
        """Return itself as the only model."""
        return [self]

    def find(self, name: str, task: str = "transcribe") -> FakeTranscriber:
        """Return itself for its names."""
        if name and name not in self.names and name not in self.aliases:
            raise UnknownModel(name, self.names)
        return self

    def health(self) -> dict[str, Any]:
        """Return a body."""
        return {"status": "ok", "ready": True}

    def unready(self) -> str | None:
        """Return the reason not to be ready."""
        return self.not_ready and self.not_ready.message

    def require_ready(self) -> None:
        """Raise the test's error."""
        if self.not_ready:
            raise self.not_ready

    def require_room(self) -> None:
        """Raise the test's error."""
        if self.no_room:
            raise self.no_room


def make_app(transcriber: FakeTranscriber | None = None, *, api_key: str | None = None, **given: Any) -> ASGIApp:
    """Return the app around a transcriber, with a clock that stands still; `given` as for `create_app`."""
    rules = Rules(keys=() if api_key is None else (api_key,))
    given = {"rules": rules, "limits": Limits(LIMIT), "clock": lambda: 0.0} | given
    return create_app(transcriber or FakeTranscriber(), **given)


def multipart(
    *fields: tuple[str, str], file: bytes | None = b"sound", filename: str = "voice.ogg"
) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a form with the model `whisper-1` and an upload, last as the SDK sends it."""
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in (("model", "whisper-1"), *fields)
    ]
    if file is not None:
        head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
        parts.append(head.encode() + file + b"\r\n")
    return {"content-type": "multipart/form-data; boundary=b"}, b"".join(parts) + b"--b--\r\n"


@dataclass
class Answer:
    """What the app sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False

    def json(self) -> Any:
        """Return the body decoded."""
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """Return the error in the envelope, which has exactly its four keys."""
        error = self.json()["error"]
        assert list(error) == ["message", "type", "param", "code"]
        return error


async def call(
    app: ASGIApp,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | Iterable[bytes] = b"",
    *,
    peer: str | None = "127.0.0.1",
    query: str = "",
    hang_up: asyncio.Event | None = None,
    unfinished: bool = False,
) -> Answer:
    """Call the app from `peer`; hang up when the event is set, or in the middle of the body if `unfinished`."""
    chunks = [body] if isinstance(body, bytes) else list(body)
    messages = [
        {"type": "http.request", "body": chunk, "more_body": unfinished or number + 1 < len(chunks)}
        for number, chunk in enumerate(chunks)
    ]
    gone = hang_up or asyncio.Event()
    answer = Answer()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        if not unfinished:
            await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")
            answer.whole = not message.get("more_body", False)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},  # uvicorn's
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
        "client": peer and (peer, 1),
        "server": ("127.0.0.1", 5000),
    }
    await app(scope, receive, send)
    return answer


async def transcribe(app: ASGIApp, *fields: tuple[str, str], **how: Any) -> Answer:
    """Post a form to /v1/audio/transcriptions."""
    headers, body = multipart(*fields, **how)
    return await call(app, "POST", "/v1/audio/transcriptions", headers, body)


class InProcess(httpx2.BaseTransport):
    """A transport that takes the synchronous SDK to the app."""

    def __init__(self, app: ASGIApp) -> None:
        self._transport = httpx2.ASGITransport(app)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Run the app for one request."""

        async def answer() -> httpx2.Response:
            response = await self._transport.handle_async_request(request)
            content = await response.aread()
            return httpx2.Response(response.status_code, headers=response.headers, content=content)

        return asyncio.run(answer())
