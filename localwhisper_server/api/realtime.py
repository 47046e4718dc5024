"""The realtime route: a WebSocket around a `realtime.Session`. It reads, runs the session's work, and writes.

Nothing is read while the session is full or the client does not read its events, so a session's memory is bounded.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import anyio.to_thread
from fastapi import FastAPI
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from localwhisper_server.api import form, formats
from localwhisper_server.api.middleware import claim_share, note
from localwhisper_server.api.protocol import RESTARTING
from localwhisper_server.errors import EngineFailed, InvalidRequest, ServerError, Stopping, UnknownModel
from localwhisper_server.models import Model, Models, SessionDecoder
from localwhisper_server.observer import ModelObserver
from localwhisper_server.realtime.item import Outcome, Pass
from localwhisper_server.realtime.session import Event, Session, described
from localwhisper_server.types import Decoding

logger = logging.getLogger(__name__)

SUBPROTOCOL: Final = "realtime"
BETA_SUBPROTOCOL: Final = "openai-beta.realtime-v1"
# Closing codes (RFC 6455 §7.4.1 and IANA's registry).
NORMAL, REFUSED, FAILED, TRY_AGAIN = 1000, 1008, 1011, 1013
# Messages and sound above these sizes are handled in a thread: they take more than a few milliseconds.
LONG_MESSAGE: Final = 64 * 1024
LONG_SOUND: Final = 16 * 1024
# Threads for that, of all sessions together.
THREADS: Final = 2
LONGEST_REASON: Final = 120  # bytes; a closing frame has room for 123


def add_realtime(app: FastAPI, prefix: str, models: Models, *, clock: Callable[[], float]) -> None:
    """Add the route below `prefix`."""
    limiter: list[anyio.CapacityLimiter] = []  # made in the event loop that it belongs to

    @app.websocket(f"{prefix}/realtime")
    async def realtime(websocket: WebSocket) -> None:
        if not limiter:
            limiter.append(anyio.CapacityLimiter(THREADS))
        offered = websocket.scope.get("subprotocols", ())
        await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        connection = _Connection(websocket, limiter[0], clock)
        with contextlib.suppress(WebSocketDisconnect):
            try:
                name, model = _model(websocket, models)
                claim_share(websocket.scope)
                models.require_ready()
                decoder = model.live()
            except ServerError as refusal:
                note(websocket.scope, error=refusal.code or refusal.param, failed=refusal.status)
                await connection.refuse(refusal)
                return
            with contextlib.closing(decoder):
                try:
                    session = _new_session(websocket, models, name, model, clock())
                    await connection.run(session, decoder, model.observer)
                except WebSocketDisconnect:
                    raise
                except Exception:
                    logger.exception("a live session failed")
                    note(websocket.scope, failed=EngineFailed.status)
                    await connection.refuse(EngineFailed())


def _model(websocket: WebSocket, models: Models) -> tuple[str, Model]:
    """Return the name that is asked for, and its model.

    Raises:
        InvalidRequest: a conversation is asked for.
        UnknownModel: the model is not served.

    """
    name = websocket.query_params.get("model", "")
    try:
        return name or models.names[0], models.find(name)
    except UnknownModel:
        if websocket.query_params.get("intent") == "transcription":
            raise
    raise InvalidRequest(
        "This server transcribes; it holds no conversations. Connect with ?intent=transcription.",
        param="intent",
        code="invalid_value",
    )


def _new_session(websocket: WebSocket, models: Models, name: str, model: Model, now: float) -> Session:
    def parse(asked: Mapping[str, Any]) -> Decoding:
        return _decoding(asked, model.languages)

    def knows(other: str) -> bool:
        with contextlib.suppress(UnknownModel):
            return models.find(other) is model
        return False

    beta = "realtime=v1" in websocket.headers.get("openai-beta", "")
    return Session(
        new_detector=model.new_detector,
        parse=parse,
        knows=knows,
        model=name,
        beta=beta or BETA_SUBPROTOCOL in websocket.scope.get("subprotocols", ()),
        now=now,
        unix_time=int(time.time()),
        new_id=lambda prefix: prefix + secrets.token_hex(12),
    )


def _decoding(asked: Mapping[str, Any], known_languages: frozenset[str]) -> Decoding:
    """Check the options of a transcription as those of a form."""
    values = {
        "language": [asked.get("language") or ""],
        "languages[]": asked.get("languages") or [],
        "prompt": [asked.get("prompt") or ""],
        "keywords[]": asked.get("keywords") or [],
        "include[]": ["logprobs"] if asked.get("logprobs") else [],
    }
    return form.parse(values, "transcribe", known_languages=known_languages).options.decoding


class _Connection:
    """One WebSocket and its session, from acceptance to the end."""

    def __init__(self, websocket: WebSocket, limiter: anyio.CapacityLimiter, clock: Callable[[], float]) -> None:
        self._websocket = websocket
        self._limiter = limiter
        self._clock = clock
        self._message: Mapping[str, Any] | None = None  # read, but not for the session yet
        self._receiving: asyncio.Task[Any] | None = None
        self._working: tuple[Pass, asyncio.Task[Outcome]] | None = None

    async def refuse(self, error: ServerError) -> None:
        """Send the error as an event, and close."""
        event_id = f"event_{secrets.token_hex(12)}"
        event = {"type": "error", "event_id": event_id, "error": {**described(error), "event_id": None}}
        await self._send([event])
        code = FAILED if isinstance(error, EngineFailed) else REFUSED
        await self._close(TRY_AGAIN if "retry_after" in event["error"] else code, error.message)

    async def run(self, session: Session, decoder: SessionDecoder, observer: ModelObserver) -> None:
        """Serve a session until it is over.

        Raises:
            WebSocketDisconnect: the client left.

        """
        events = session.open()
        try:
            while True:
                self._note(events, observer)
                await self._send(events)
                if session.over:
                    if session.stopping:
                        await self._close(RESTARTING, Stopping().message)
                    else:
                        await self._close(NORMAL, events[-1]["error"]["message"])
                    return
                if (work := session.next_pass()) is not None:
                    if self._working is not None:
                        self._working[1].cancel()
                    self._working = work, asyncio.create_task(_decoded(decoder, work))
                events = [*await self._step(session), *session.tick(self._clock())]
        finally:
            tasks = [task for task in (self._receiving, self._working and self._working[1]) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _step(self, session: Session) -> list[Event]:
        """Take one message, one outcome or a slice of sound; wait for one of them if necessary."""
        if self._message is not None and not session.unheard:
            message, self._message = self._message, None
            return await self._take(session, message)
        hearing = session.unheard and not session.full
        await self._wait(session, 0.0 if hearing else max(0.0, session.deadline - self._clock()))
        if self._working is not None and self._working[1].done():
            (work, task), self._working = self._working, None
            return session.take(work, task.result())
        if self._receiving is not None and self._receiving.done():
            self._message, self._receiving = self._receiving.result(), None
            if self._message is not None and self._message["type"] == "websocket.disconnect":
                if self._message.get("code") != RESTARTING:
                    raise WebSocketDisconnect
                self._message = None
                return session.stop(self._clock())
        return await self._hear(session) if hearing else []

    async def _wait(self, session: Session, seconds: float) -> None:
        """Wait for a message, unless one is here already or none may follow, or for the work's outcome."""
        if self._message is None and self._receiving is None and not session.stopping:
            self._receiving = asyncio.create_task(self._websocket.receive())
        tasks = [task for task in (self._receiving, self._working and self._working[1]) if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    async def _take(self, session: Session, message: Mapping[str, Any]) -> list[Event]:
        text, now = message.get("text"), self._clock()
        if text is None or len(text) < LONG_MESSAGE:
            return session.receive(text, now)
        return await anyio.to_thread.run_sync(session.receive, text, now, limiter=self._limiter)

    async def _hear(self, session: Session) -> list[Event]:
        if session.unheard_bytes < LONG_SOUND:
            return session.hear()
        return await anyio.to_thread.run_sync(session.hear, limiter=self._limiter)

    async def _send(self, events: Sequence[Event]) -> None:
        for event in events:
            await self._websocket.send_text(formats.to_json(event).decode())

    async def _close(self, code: int, reason: str) -> None:
        with contextlib.suppress(RuntimeError):  # the client has just closed
            await self._websocket.close(code, reason.encode()[:LONGEST_REASON].decode(errors="ignore"))

    def _note(self, events: Sequence[Event], observer: ModelObserver) -> None:
        for event in events:
            if event["type"].endswith(".completed"):
                _add_seconds(self._websocket.scope, event["usage"]["seconds"])
                observer.transcribed(event["usage"]["seconds"])
            elif "error" in event:
                note(self._websocket.scope, error=event["error"]["code"])


def _add_seconds(scope: Scope, seconds: float) -> None:
    """Add to the sound that the log line tells of."""
    scope["localwhisper.heard"] = scope.get("localwhisper.heard", 0.0) + seconds
    note(scope, audio_seconds=scope["localwhisper.heard"], language=None)


async def _decoded(decoder: SessionDecoder, work: Pass) -> Outcome:
    try:
        return await decoder.decode(work.samples, work.speech, work.decoding, thorough=work.thorough)
    except ServerError as failure:
        return failure
    except Exception:
        logger.exception("a pass of a live session failed")
        return EngineFailed()
