"""Every error as OpenAI answers it: the status, the headers, and one envelope in JSON."""

import asyncio
import logging

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localwhisper_server.api import formats
from localwhisper_server.api.request_log import note
from localwhisper_server.errors import (
    EngineFailed,
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServerError,
    Stopping,
    WrongKey,
)

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's number; only the log shows it, since the caller has left


def refuse(error: ServerError, scope: Scope) -> Response:
    """Return the answer for an error, and note it for the log."""
    note(scope, error=error.code or error.param)
    if isinstance(error, Forbidden):
        note(scope, refused=error.who, option=error.option)
    # OpenAI labels the JSON of this one as text; the SDKs parse it all the same.
    media_type = formats.TEXT_TYPE if isinstance(error, WrongKey) else formats.JSON_TYPE
    return Response(formats.to_json(error.body()), error.status, error.headers, media_type=media_type)


async def refuse_route(request: Request, failure: Exception) -> Response:
    """Answer the framework's own refusal, an HTTPException, in OpenAI's words."""
    assert isinstance(failure, HTTPException)  # noqa: S101 - registered for this class alone
    path = request.url.path
    error: ServerError
    match failure.status_code:
        case 404:
            error = NotFound(request.method, path)
        case 405:
            error = MethodNotAllowed(request.method, path, (failure.headers or {}).get("Allow", ""))
        case _:
            error = InvalidRequest(f"We could not parse the body of your request: {failure.detail}")
    return refuse(error, request.scope)


class ErrorEnvelope:
    """ASGI middleware that answers what is raised within."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_and_remember(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_remember)
        except ServerError as failure:
            error = failure
        except ClientDisconnect:
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
            return
        except asyncio.CancelledError:
            # uvicorn cancels what still runs at the end of a graceful stop, and would answer it in plain text.
            error = Stopping()
        except Exception:
            logger.exception("a request failed")
            error = EngineFailed()
        else:
            return
        if begun:
            note(scope, failed=error.status, error=error.code or error.param)
        else:
            await refuse(error, scope)(scope, receive, send)
