"""The routes: the application around the transcriber, from an upload to its transcript or stream of events."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from localwhisper_server.api import _multipart, form, formats
from localwhisper_server.api.access_control import AccessControl, Rules
from localwhisper_server.api.envelope import CLIENT_CLOSED_REQUEST, ErrorEnvelope, refuse_route
from localwhisper_server.api.limits import Limits, RequestLimits, claim_share
from localwhisper_server.api.realtime import LiveTranscriber, add_realtime
from localwhisper_server.api.request_log import LONGEST_NAME, RequestLog, note
from localwhisper_server.errors import EngineFailed, ServerError, UnknownModel, UnreadableAudio
from localwhisper_server.observer import NullObserver, Observer
from localwhisper_server.types import Options, Segment, Task, Transcript

if TYPE_CHECKING:
    from localwhisper_server.api.upstream import Upstream

logger = logging.getLogger(__name__)

# The route's name in the metrics for all that goes to the upstream.
UPSTREAM_ROUTE = SimpleNamespace(path="upstream")
# Keeps FastAPI's own OpenTelemetry off, which variables of the environment turn on. Older versions ignore this.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}

Items = AsyncGenerator[Segment | Transcript]
"""The segments of a transcript as they are decoded, then the transcript."""
Result = TypeVar("Result")


class Transcriber(LiveTranscriber, Protocol):
    """What the routes know of the model: `names` it is listed by, `aliases` it has beside them, and its state.

    `created` is its file's time in Unix seconds; `languages` are the codes that it knows.
    """

    names: tuple[str, ...]
    aliases: frozenset[str]
    created: int
    languages: frozenset[str]

    def transcribe(self, source: IO[bytes], options: Options) -> Items:
        """Yield segments, then the transcript; close `source` at the end."""
        ...

    def health(self) -> dict[str, Any]:
        """Describe the state, with a boolean `ready`."""
        ...

    def unready(self) -> str | None:
        """Say why requests should go elsewhere; None if they need not."""
        ...

    @property
    def queue_seconds(self) -> float:
        """How long a request that came now would wait."""
        ...

    def require_ready(self) -> None:
        """Raise Busy while the model is being loaded."""
        ...

    def require_room(self) -> None:
        """Raise Busy if the queue has no room."""
        ...


def create_app(
    transcriber: Transcriber,
    *,
    rules: Rules | None = None,
    limits: Limits | None = None,
    observer: Observer | None = None,
    exposition: Callable[[str], tuple[bytes, str]] | None = None,
    upstream: "Upstream | None" = None,
    clock: Callable[[], float] = time.monotonic,
    lifespan: Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]] | None = None,
) -> ASGIApp:
    """Return the application around a transcriber.

    `rules` say who may call, `limits` how much. `observer` is told of every answer. `exposition` makes /metrics, from
    an `Accept` header to a body and its content type. `upstream` answers what is below /v1 and has no route here.
    """

    def queue_seconds() -> float:
        return transcriber.queue_seconds

    app = FastAPI(
        title="localwhisper",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
        exception_handlers={HTTPException: refuse_route},
        middleware=[
            Middleware(RequestLog, observer or NullObserver(), queue_seconds=queue_seconds, clock=clock),
            Middleware(AccessControl, rules or Rules()),
            Middleware(ErrorEnvelope),
            Middleware(RequestLimits, limits or Limits(), retry_after=queue_seconds, clock=clock),
        ],
    )
    for prefix in ("/v1", ""):  # many base URLs lack the /v1
        _add_routes(app, prefix, transcriber, upstream)
        add_realtime(app, prefix, transcriber, observer=observer or NullObserver(), clock=clock)
    if exposition is not None:
        _add_metrics(app, exposition)
    if upstream is not None:
        app.router.default = _to_upstream(upstream)
    return app


def _add_routes(app: FastAPI, prefix: str, transcriber: Transcriber, upstream: "Upstream | None") -> None:
    speech = {"requestBody": form.OPENAPI_BODY}

    @app.post(f"{prefix}/audio/transcriptions", openapi_extra=speech, response_class=Response)
    async def transcriptions(request: Request) -> Response:
        return await _speech(request, "transcribe", transcriber)

    @app.post(f"{prefix}/audio/translations", openapi_extra=speech, response_class=Response)
    async def translations(request: Request) -> Response:
        return await _speech(request, "translate", transcriber)

    @app.get(f"{prefix}/models", response_class=Response)
    async def models(request: Request) -> Response:
        names = transcriber.names
        others = await upstream.models(request.headers.raw) if upstream is not None else []
        listed = [_model(name, transcriber) for name in names] + [other for other in others if other["id"] not in names]
        return _json({"object": "list", "data": listed})

    @app.get(f"{prefix}/models/{{name:path}}", response_class=Response)
    async def model(request: Request, name: str) -> Response:
        if name in transcriber.names or name in transcriber.aliases:
            return _json(_model(name, transcriber))
        if upstream is not None:
            status, body = await upstream.get(f"models/{name}", request.headers.raw)
            return Response(body, status, media_type=formats.JSON_TYPE)
        raise UnknownModel(name[:128], transcriber.names)

    @app.head(f"{prefix}/health", include_in_schema=False)  # many monitors ask by HEAD
    @app.get(f"{prefix}/health", response_class=Response)
    async def health() -> Response:
        return _json(transcriber.health())

    @app.head(f"{prefix}/ready", include_in_schema=False)
    @app.get(f"{prefix}/ready", response_class=Response)
    async def ready() -> Response:
        reason = transcriber.unready()
        return _json({"ready": reason is None, "reason": reason}, 503 if reason else 200)


def _add_metrics(app: FastAPI, exposition: Callable[[str], tuple[bytes, str]]) -> None:
    @app.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        body, content_type = exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})


def _to_upstream(upstream: ASGIApp) -> ASGIApp:
    """Return what answers where no route does."""

    async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = UPSTREAM_ROUTE
        await upstream(scope, receive, send)

    return pass_on


def _model(name: str, transcriber: Transcriber) -> dict[str, Any]:
    created = transcriber.created
    return {"id": name, "object": "model", "created": created, "owned_by": "localwhisper", "shutdown_date": None}


def _json(value: Any, status: int = 200) -> Response:
    return Response(formats.to_json(value), status, media_type=formats.JSON_TYPE)


async def _speech(request: Request, task: Task, transcriber: Transcriber) -> Response:
    claim_share(request.scope)
    transcriber.require_ready()
    if _multipart.is_large(request):
        transcriber.require_room()  # before gigabytes are read for nothing
    async with _multipart.parsed(request) as data:
        fields = _multipart.fields(data)
        model = form.requested_model(fields) or transcriber.names[0]
        if model not in transcriber.names and model not in transcriber.aliases:
            raise UnknownModel(model[:128], transcriber.names)
        asked = form.parse(fields, task, known_languages=transcriber.languages)
        uploads = [value for _, value in data.multi_items() if isinstance(value, UploadFile)]
        upload = next((value for value in data.getlist("file") if isinstance(value, UploadFile)), None)
        if upload is None:
            raise form.missing_file()
        note(request.scope, file=(upload.filename or "")[:LONGEST_NAME])
        for other in uploads:
            if other is not upload:
                await other.close()
        # The transcriber closes this one: when requests are coalesced, the transcription may outlive this request.
        items = _noted(transcriber.transcribe(upload.file, asked.options), request.scope)
        try:
            if asked.stream:
                # The first item before the headers: a file that cannot be decoded is a 400, not a broken stream.
                first = await _unless_gone(request, anext(items))
                return _EventStream(_events(first, items, asked, request.scope), media_type=formats.SSE_TYPE)
            transcript = await _unless_gone(request, _last(items))
        except UnreadableAudio as failure:
            raise form.unreadable(upload.filename) or failure from failure
        except _Gone:
            await items.aclose()
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    return _rendered(transcript, asked)


async def _noted(items: Items, scope: Scope) -> Items:
    """Pass items on, and note of the transcript what the log may have: never its words."""
    async with contextlib.aclosing(items):
        async for item in items:
            if isinstance(item, Transcript):
                note(scope, audio_seconds=round(item.duration, 3), language=item.language)
            yield item


async def _last(items: Items) -> Transcript:
    async with contextlib.aclosing(items):
        async for item in items:
            if isinstance(item, Transcript):
                return item
    raise EngineFailed  # a fault of the server: every transcription ends with a transcript


def _rendered(transcript: Transcript, asked: form.SpeechRequest) -> Response:
    if asked.response_format in formats.PLAIN:
        media_type, render = formats.PLAIN[asked.response_format]
        return Response(render(transcript), media_type=media_type)
    if asked.response_format == "verbose_json":
        words = asked.options.decoding.words
        body = formats.render_verbose_json(transcript, segments=asked.segments, words=words)
    else:
        body = formats.render_json(transcript, **_extras(asked))
    return Response(body, media_type=formats.JSON_TYPE)


def _extras(asked: form.SpeechRequest) -> dict[str, Any]:
    """Return what json has beside the text, as arguments of `render_json`."""
    decoding = asked.options.decoding
    return {"logprobs": decoding.logprobs, "list_languages": asked.lists_languages, "hints": decoding.languages}


async def _events(
    first: Segment | Transcript, items: Items, asked: form.SpeechRequest, scope: Scope
) -> AsyncGenerator[bytes]:
    """Render items as server-sent events; the deltas add up to the text of `done`."""
    item = first
    begun = False
    try:
        async with contextlib.aclosing(items):
            while isinstance(item, Segment):
                text = item.text if begun else item.text.lstrip()
                if text:
                    begun = True
                    yield formats.delta_event(text, item, logprobs=asked.options.decoding.logprobs)
                item = await anext(items)
        yield formats.done_event(item, **_extras(asked))
    # The status is sent already. The SDKs raise APIError for an event with an `error`.
    except ServerError as failure:
        yield _error_event(failure, scope)
    except Exception:
        logger.exception("a stream failed")
        yield _error_event(EngineFailed(), scope)


def _error_event(error: ServerError, scope: Scope) -> bytes:
    note(scope, failed=error.status, error=error.code or error.param)
    return formats.event({"type": "error"} | error.body())


class _EventStream(StreamingResponse):
    """Closes its generator however the sending ends; Starlette leaves that to the garbage collector."""

    def __init__(self, events: AsyncGenerator[bytes], media_type: str) -> None:
        super().__init__(events, media_type=media_type)
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send the events."""
        async with contextlib.aclosing(self._events):
            await super().stream_response(send)


class _Gone(Exception):
    """The caller has hung up."""


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Await `work`, but cancel it as soon as the caller hangs up.

    Raises:
        _Gone: the caller hung up first.

    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hung_up(request.receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Gone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
