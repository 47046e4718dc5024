"""The application: every route, below /v1 and without it, within the layer of `middleware`."""

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from localwhisper_server.api import formats, speech
from localwhisper_server.api.access_control import Rules
from localwhisper_server.api.middleware import Activity, Limits, RequestMiddleware
from localwhisper_server.api.page import add_page
from localwhisper_server.api.realtime import add_realtime
from localwhisper_server.errors import MethodNotAllowed, NotFound, UnknownModel
from localwhisper_server.models import Model, Models
from localwhisper_server.observer import Observer

if TYPE_CHECKING:
    from localwhisper_server.api.upstream import Upstream

# Keeps FastAPI's own OpenTelemetry off, which variables of the environment turn on. Older versions ignore this.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(
    models: Models,
    *,
    rules: Rules | None = None,
    limits: Limits | None = None,
    observer: Observer | None = None,
    exposition: Callable[[str], tuple[bytes, str]] | None = None,
    upstream: "Upstream | None" = None,
    clock: Callable[[], float] = time.monotonic,
    lifespan: Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Return the application around the models.

    `rules` say who may call, `limits` how much. `observer` is told of every answer. `exposition` makes /metrics, from
    an `Accept` header to a body and its content type. `upstream` answers what is below /v1 and has no route here.
    """
    activity = Activity()
    app = FastAPI(
        title="localwhisper",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
        exception_handlers={HTTPException: _no_such_route},
    )
    app.add_middleware(
        RequestMiddleware,
        models,
        rules or Rules(),
        limits or Limits(),
        observer=observer or Observer(),
        activity=activity,
        clock=clock,
    )
    for prefix in ("/v1", ""):  # many base URLs lack the /v1
        speech.add_routes(app, prefix, models)
        _add_routes(app, prefix, models, upstream)
        add_realtime(app, prefix, models, clock=clock)
    add_page(app, activity)
    if exposition is not None:

        @app.get("/metrics", response_class=Response)
        async def metrics(request: Request) -> Response:
            body, content_type = exposition(request.headers.get("accept", ""))
            return Response(body, headers={"content-type": content_type})

    if upstream is not None:
        app.router.default = upstream
    return app


def _add_routes(app: FastAPI, prefix: str, models: Models, upstream: "Upstream | None") -> None:
    @app.get(f"{prefix}/models", response_class=Response)
    async def listed(request: Request) -> Response:
        names = models.names
        others = await upstream.models(request.headers.raw) if upstream is not None else []
        ours = [_model(name, models.find(name)) for name in names]
        return _json({"object": "list", "data": ours + [other for other in others if other["id"] not in names]})

    @app.get(f"{prefix}/models/{{name:path}}", response_class=Response)
    async def model(request: Request, name: str) -> Response:
        try:
            return _json(_model(name, models.find(name)))
        except UnknownModel:
            if upstream is None:
                raise
        status, body = await upstream.get(f"models/{name}", request.headers.raw)
        return Response(body, status, media_type=formats.JSON_TYPE)

    @app.head(f"{prefix}/health", include_in_schema=False)  # many monitors ask by HEAD
    @app.get(f"{prefix}/health", response_class=Response)
    async def health() -> Response:
        return _json(models.health())

    @app.head(f"{prefix}/ready", include_in_schema=False)
    @app.get(f"{prefix}/ready", response_class=Response)
    async def ready() -> Response:
        reason = models.unready()
        return _json({"ready": reason is None, "reason": reason}, 503 if reason else 200)


def _model(name: str, model: Model) -> dict[str, Any]:
    """Return a model as OpenAI lists it, and what it can do, which the SDKs ignore."""
    openai = {"id": name, "object": "model", "created": model.created, "owned_by": "localwhisper"}
    can_do = {"languages": sorted(model.languages), "can_translate": model.can_translate}
    return openai | {"shutdown_date": None} | can_do


def _json(value: Any, status: int = 200) -> Response:
    return Response(formats.to_json(value), status, media_type=formats.JSON_TYPE)


async def _no_such_route(request: Request, failure: Exception) -> Response:
    """Raise the framework's own refusal, which is an HTTPException, as an error of this server's."""
    method, path = request.method, request.scope["path"]
    allowed = (getattr(failure, "headers", None) or {}).get("Allow")
    if allowed is None:
        raise NotFound(method, path)
    raise MethodNotAllowed(method, path, allowed)
