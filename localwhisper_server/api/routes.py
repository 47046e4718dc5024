"""The HTTP surface: routes, uploads, answers, OpenAI's error envelope. The only importer of the web framework."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from localwhisper_server import observer
from localwhisper_server.api import form, formats, multipart
from localwhisper_server.api.access_control import Door, Guard, Rules, Shares
from localwhisper_server.api.asgi import App, Message, Receive, Scope, Send
from localwhisper_server.api.openapi import SPEECH_FORM
from localwhisper_server.api.request_log import LONGEST_NAME, RequestLog, note
from localwhisper_server.errors import (
    Busy,
    EngineFailed,
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServerError,
    UnknownModel,
    UnreadableAudio,
    WrongKey,
)
from localwhisper_server.types import Options, Segment, Task, Transcript

logger = logging.getLogger(__name__)

STOPPING_RETRY_SECONDS = 5.0  # a restart takes about so long
# The routes where the model works: what one address may have only so many of.
WORK_ROUTES = frozenset(
    f"{prefix}/audio/{task}" for prefix in ("", "/v1") for task in ("transcriptions", "translations")
)
# What a page may read of an answer beside its body.
EXPOSED_HEADERS = ("x-request-id", "openai-processing-ms", "retry-after", "x-localwhisper-queue-seconds")
# What stands for all that is passed on, where a route's template is asked for.
UPSTREAM_ROUTE = SimpleNamespace(path="upstream")
# The framework has traces of its own (older ones ignore this), which variables of the environment turn on. Here they
# are the business of `tracing` alone.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
CLIENT_CLOSED_REQUEST = 499  # nginx's number, for the log alone: nobody is there to read the answer


class Backend(Protocol):
    """What the routes need to know of the model behind them."""

    names: tuple[str, ...]
    aliases: frozenset[str]
    created: int
    languages: frozenset[str]

    def transcribe(self, source: Any, options: Options) -> AsyncGenerator[Segment | Transcript]:
        """Yield segments, then the transcript."""
        ...

    def health(self) -> dict[str, Any]:
        """Describe the state, with a boolean `ready`."""
        ...

    def unready(self) -> str | None:
        """Say why requests had better go elsewhere; None where they are welcome."""
        ...

    @property
    def queue_seconds(self) -> float:
        """How long a request that came now would wait."""
        ...

    def require_ready(self) -> None:
        """Raise Busy while the model is being loaded."""
        ...

    def require_room(self) -> None:
        """Raise Busy where a request would be turned away once it is here."""
        ...


class Metrics(observer.Observer, Protocol):
    """Counts what happens and can say so."""

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all numbers as text and its content type, in the format the `Accept` header prefers."""
        ...


class Upstream(Protocol):
    """Answers what is below /v1 and not ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

    async def models(self, headers: Sequence[tuple[bytes, bytes]]) -> list[dict[str, Any]]:
        """Return its models for a caller with these headers; none where the list cannot be had."""
        ...

    async def get(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, bytes]:
        """Return status and body of a small answer on a path below /v1."""
        ...


def create_app(
    backend: Backend,
    *,
    api_key: str | None = None,
    max_upload: int | None = None,
    rules: Rules | None = None,
    metrics: Metrics | None = None,
    upstream: Upstream | None = None,
    clock: Callable[[], float] = time.monotonic,
    lifespan: Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]] | None = None,
) -> App:
    """Return the ASGI application around a backend.

    `rules` say who may come in; `api_key` and `max_upload`, where given, replace theirs. `upstream` answers what is
    below /v1 and not ours. `metrics` are told of every answer and shown at /metrics.
    """
    rules = rules or Rules()
    rules = replace(
        rules,
        keys=rules.keys if api_key is None else (api_key,),
        max_upload=rules.max_upload if max_upload is None else max_upload,
    )
    app = FastAPI(
        title="localwhisper",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
    )
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ServerError, _server_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _fault)
    for prefix in ("/v1", ""):  # people forget the /v1
        _add_routes(app, prefix, backend, upstream)
    shares = Shares(rules.per_address, retry_after=lambda: backend.queue_seconds)
    for route in app.routes:
        if isinstance(route, Route) and route.path in WORK_ROUTES:
            route.app = shares.around(route.app)
    if metrics is not None:
        _add_metrics(app, metrics)
    if upstream is not None:
        app.router.default = _otherwise(upstream)
    inner: App = _Enveloped(Guard(app, rules, clock=clock))
    if rules.origins or rules.keys:
        # Around the errors, so that a page can read them; inside the door, which refuses the pages that may not call.
        inner = CORSMiddleware(
            inner,
            allow_origins=rules.origins,
            allow_origin_regex=".*" if rules.keys else None,
            allow_methods=("*",),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED_HEADERS,
        )
    door = _Enveloped(Door(inner, rules))
    return RequestLog(door, clock, lambda: backend.queue_seconds, metrics or observer.NullObserver())


def _add_routes(app: FastAPI, prefix: str, backend: Backend, upstream: Upstream | None) -> None:
    speech = {"requestBody": SPEECH_FORM}

    @app.post(f"{prefix}/audio/transcriptions", openapi_extra=speech, response_class=Response)
    async def transcriptions(request: Request) -> Response:
        return await _speech(request, "transcribe", backend)

    @app.post(f"{prefix}/audio/translations", openapi_extra=speech, response_class=Response)
    async def translations(request: Request) -> Response:
        return await _speech(request, "translate", backend)

    @app.get(f"{prefix}/models", response_class=Response)
    async def models(request: Request) -> Response:
        others = await upstream.models(request.headers.raw) if upstream is not None else []
        ours = [_model(name, backend) for name in backend.names]
        return _json({"object": "list", "data": ours + [model for model in others if model["id"] not in backend.names]})

    @app.get(f"{prefix}/models/{{name:path}}", response_class=Response)
    async def model(request: Request, name: str) -> Response:
        if name in backend.names or name in backend.aliases:
            return _json(_model(name, backend))
        if upstream is not None:
            status, body = await upstream.get(f"models/{name}", request.headers.raw)
            return Response(body, status, media_type=formats.JSON_TYPE)
        raise UnknownModel(name[:128], backend.names)

    @app.head(f"{prefix}/health", include_in_schema=False)  # monitors ask so
    @app.get(f"{prefix}/health", response_class=Response)
    async def health() -> Response:
        return _json(backend.health())

    @app.head(f"{prefix}/ready", include_in_schema=False)
    @app.get(f"{prefix}/ready", response_class=Response)
    async def ready() -> Response:
        reason = backend.unready()
        return _json({"ready": reason is None, "reason": reason}, 503 if reason else 200)


def _add_metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/metrics", response_class=Response)
    async def numbers(request: Request) -> Response:
        body, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})


def _otherwise(upstream: App) -> App:
    """Return what answers where no route does."""

    async def passed_on(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = UPSTREAM_ROUTE
        await upstream(scope, receive, send)

    return passed_on


def _model(name: str, backend: Backend) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": backend.created,
        "owned_by": "localwhisper",
        "shutdown_date": None,
    }


async def _speech(request: Request, task: Task, backend: Backend) -> Response:
    backend.require_ready()
    if multipart.is_large(request):
        backend.require_room()  # before gigabytes are taken in for nothing
    async with multipart.parsed(request) as data:
        fields = multipart.fields(data)
        model = form.requested_model(fields) or backend.names[0]
        if model not in backend.names and model not in backend.aliases:
            raise UnknownModel(model[:128], backend.names)
        asked = form.parse(fields, task, known_languages=backend.languages, model=model)
        uploads = [value for _, value in data.multi_items() if isinstance(value, UploadFile)]
        upload = next((value for value in data.getlist("file") if isinstance(value, UploadFile)), None)
        if upload is None:
            raise form.missing_file()
        note(request.scope, file=(upload.filename or "")[:LONGEST_NAME])
        for other in uploads:
            if other is not upload:
                await other.close()
        # From here on the service closes it: a transcription that others follow may outlive this request.
        items = _noted(backend.transcribe(upload.file, asked.options), request.scope)
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


async def _noted(items: AsyncGenerator[Segment | Transcript], scope: Scope) -> AsyncGenerator[Segment | Transcript]:
    """Pass items on, and note of the transcript what the log may know: never its words."""
    async with contextlib.aclosing(items):
        async for item in items:
            if isinstance(item, Transcript):
                note(scope, audio_seconds=round(item.duration, 3), language=item.language)
            yield item


async def _last(items: AsyncGenerator[Segment | Transcript]) -> Transcript:
    async with contextlib.aclosing(items):
        async for item in items:
            if isinstance(item, Transcript):
                return item
    raise EngineFailed  # a service that ends without a transcript is a fault of ours


def _rendered(transcript: Transcript, asked: form.SpeechRequest) -> Response:
    if asked.response_format in formats.PLAIN:
        media_type, render = formats.PLAIN[asked.response_format]
        return Response(render(transcript), media_type=media_type)
    if asked.response_format == "verbose_json":
        body = formats.render_verbose_json(transcript, segments=asked.segments, words=asked.words)
    else:
        body = formats.render_json(transcript, **_shown(asked))
    return Response(body, media_type=formats.JSON_TYPE)


def _shown(asked: form.SpeechRequest) -> dict[str, Any]:
    """Return what json shows beside the text."""
    hints = asked.options.decoding.languages
    return {"logprobs": asked.logprobs, "list_languages": asked.lists_languages, "hints": hints}


async def _events(
    first: Segment | Transcript, items: AsyncGenerator[Segment | Transcript], asked: form.SpeechRequest, scope: Scope
) -> AsyncGenerator[bytes]:
    """Render items as server-sent events; the deltas add up to the text of `done`."""
    item: Segment | Transcript = first
    begun = False
    try:
        async with contextlib.aclosing(items):
            while isinstance(item, Segment):
                text = item.text if begun else item.text.lstrip()
                if text:
                    begun = True
                    yield formats.delta_event(text, item, logprobs=asked.logprobs)
                item = await anext(items)
        yield formats.done_event(item, **_shown(asked))
    # The headers are out: the SDKs raise APIError on an event with an `error`.
    except ServerError as failure:
        yield _failed_event(failure, scope)
    except Exception:
        logger.exception("a stream failed")
        yield _failed_event(EngineFailed(), scope)


def _failed_event(error: ServerError, scope: Scope) -> bytes:
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
    """The caller hung up."""


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Any] | Awaitable[Any]) -> Any:
    """Await `work`, but stop it as soon as the caller hangs up.

    Raises:
        _Gone: they did.

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


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(formats.to_json(value), status, headers, media_type=formats.JSON_TYPE)


def _error_response(error: ServerError, scope: Scope) -> Response:
    note(scope, error=error.code or error.param)
    if isinstance(error, Forbidden):
        note(scope, refused=error.who, option=error.option)
    response = _json(error.body(), error.status, error.headers)
    if isinstance(error, WrongKey):
        # As OpenAI sends this one; the SDKs parse it whatever it is called.
        response.headers["content-type"] = formats.TEXT_TYPE
    return response


async def _server_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ServerError)  # noqa: S101 - registered for this class alone
    return _error_response(exc, request.scope)


async def _client_gone(_request: Request, _exc: Exception) -> Response:
    """Answer who hung up in the middle of an upload, for the log's sake."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _fault(request: Request, _exc: Exception) -> Response:
    """Answer a fault of ours in the envelope; the framework raises it again, and `_Enveloped` logs it."""
    return _error_response(EngineFailed(), request.scope)


async def _http_exception(request: Request, exc: Exception) -> Response:
    """Translate the framework's own refusals into OpenAI's envelope."""
    assert isinstance(exc, HTTPException)  # noqa: S101 - registered for this class alone
    if exc.status_code == 404:  # noqa: PLR2004 - the number is the name
        return _error_response(NotFound(request.method, request.url.path), request.scope)
    if exc.status_code == 405:  # noqa: PLR2004 - as above
        allowed = (exc.headers or {}).get("Allow", "")
        return _error_response(MethodNotAllowed(request.method, request.url.path, allowed), request.scope)
    refusal = InvalidRequest(f"We could not parse the body of your request: {exc.detail}")
    return _error_response(refusal, request.scope)


class _Enveloped:
    """Answers what is raised within, in OpenAI's envelope."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except ServerError as failure:
            error = failure
        except asyncio.CancelledError:
            # uvicorn cancels what runs at the end of a graceful stop, and would answer it in plain text.
            error = Busy("The server is stopping. Try again shortly.", retry_after=STOPPING_RETRY_SECONDS)
        except Exception as failure:
            if scope["type"] != "http":
                raise
            # The framework wraps what is raised after an answer has begun.
            if isinstance(failure.__cause__, ServerError):
                error = failure.__cause__
            else:
                logger.exception("a request failed")
                error = EngineFailed()
        else:
            return
        if begun:
            note(scope, failed=error.status, error=error.code or error.param)
        else:
            await _error_response(error, scope)(scope, receive, send)
