"""The speech routes: from the body of an upload to its transcript, or to a stream of events."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator
from functools import partial
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Scope, Send

from localwhisper_server.api import form, formats
from localwhisper_server.api.known_speakers import MOST_KNOWN
from localwhisper_server.api.middleware import LONGEST_NAME, claim_share, hung_up, note, unless_gone
from localwhisper_server.errors import Busy, EngineFailed, InvalidRequest, ServerError, UnreadableAudio
from localwhisper_server.models import Items, Models
from localwhisper_server.types import Segment, Task, Transcript

logger = logging.getLogger(__name__)

MAX_FIELDS = 200
MAX_FILES = 8
# A text field, in bytes; and a reference of a known speaker: 10 s of uncompressed stereo as base64, 4 of them.
MAX_FIELD_BYTES = 1 << 20
MAX_REFERENCE_BYTES = 4 << 20
# Python has codecs that take minutes for a megabyte (punycode), or give lone surrogates.
CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1", "windows-1252", "cp1252"}
NO_ROOM_RETRY_SECONDS = 30.0  # by then, other uploads may have left the disk
# `filename*=UTF-8''caf%C3%A9.ogg`, and the first part of a long one, `filename*0*=UTF-8''caf`.
_EXTENDED_NAME = re.compile(rb"""(?i:;\s*filename\*(?:0\*?)?\s*=\s*"?(?:[\w-]*'[\w-]*')?)([^;"]*)""")


def add_routes(app: FastAPI, prefix: str, models: Models) -> None:
    """Add the routes of both tasks below a prefix."""
    document = {"requestBody": form.OPENAPI_BODY}

    @app.post(f"{prefix}/audio/transcriptions", openapi_extra=document, response_class=Response)
    async def transcriptions(request: Request) -> Response:
        return await _answer(request, "transcribe", models)

    @app.post(f"{prefix}/audio/translations", openapi_extra=document, response_class=Response)
    async def translations(request: Request) -> Response:
        return await _answer(request, "translate", models)


async def _answer(request: Request, task: Task, models: Models) -> Response:
    claim_share(request.scope)
    models.require_ready()
    # A small upload is read even when the queue is full: it may repeat a recording that is being transcribed already.
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()) or int(length[:20]) > MultiPartParser.spool_max_size:
        models.require_room()
    data = await _parsed(request)
    fields: dict[str, list[str]] = {}
    upload: UploadFile | None = None
    for name, value in data.multi_items():
        if isinstance(value, str):
            fields.setdefault(name, []).append(value)
        elif name == "file" and upload is None:
            upload = value
        else:
            await value.close()
    if upload is None:
        raise form.missing_file()
    note(request.scope, file=(upload.filename or "")[:LONGEST_NAME])
    try:
        model = models.find(form.model(fields), task)
        asked = form.parse(fields, task, known_languages=model.languages)
        # The model closes the file: when requests are coalesced, the transcription may outlive this request.
        items = model.transcribe(upload.file, asked.options)
    except Exception:
        await data.close()
        raise
    gone = hung_up(request.receive)
    try:
        if asked.stream:
            # The first item before the headers: a file that cannot be decoded is a 400, not a broken stream.
            first = await unless_gone(gone, anext(items))
            return _EventStream(_events(first, items, asked.shape, request.scope), media_type=formats.SSE_TYPE)
        transcript = await unless_gone(gone, _last(items))
    except UnreadableAudio as failure:
        raise form.unreadable(upload.filename) or failure from failure
    _describe(request.scope, transcript)
    render = partial(formats.render, transcript, asked.shape)
    # To cut an hour into lines takes a second or two.
    body = render() if asked.shape.lines is None else await asyncio.to_thread(render)
    return Response(body, media_type=formats.CONTENT_TYPES[asked.shape.name])


def _describe(scope: Scope, transcript: Transcript) -> None:
    """Note what the log may have of a transcript: never its words."""
    note(scope, audio_seconds=round(transcript.duration, 3), language=transcript.language)


async def _last(items: Items) -> Transcript:
    async with contextlib.aclosing(items):
        async for item in items:
            if isinstance(item, Transcript):
                return item
    raise EngineFailed  # a fault of the server: every transcription ends with a transcript


async def _events(
    item: Segment | Transcript, items: Items, shape: formats.Format, scope: Scope
) -> AsyncGenerator[bytes]:
    """Render `item` and the rest as server-sent events; the deltas add up to the text of `done`."""
    begun = False
    try:
        async with contextlib.aclosing(items):
            while isinstance(item, Segment):
                text = item.text if begun else item.text.lstrip()
                if text:
                    begun = True
                    yield formats.delta_event(text, item, shape)
                item = await anext(items)
        _describe(scope, item)
        if shape.name == "diarized_json":  # who speaks is known when all is heard
            for spoken in formats.segment_events(item):
                yield spoken
        yield await asyncio.to_thread(formats.done_event, item, shape)
    # The status is sent already. The SDKs raise APIError for an event with an `error`.
    except Exception as failure:
        error = failure if isinstance(failure, ServerError) else EngineFailed()
        if error is not failure:
            logger.exception("a stream failed")
        note(scope, failed=error.status, error=error.code or error.param)
        yield formats.event({"type": "error"} | error.body())


class _EventStream(StreamingResponse):
    """Closes its generator however the sending ends; Starlette leaves that to the garbage collector."""

    def __init__(self, events: AsyncGenerator[bytes], media_type: str) -> None:
        super().__init__(events, media_type=media_type)
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send the events."""
        async with contextlib.aclosing(self._events):
            await super().stream_response(send)


async def _parsed(request: Request) -> FormData:
    """Read the body.

    The framework would parse URL-encoded forms as well, and block the event loop for a second for a megabyte of `&`.

    Raises:
        InvalidRequest: the body is no multipart form, has too many parts, is compressed, or in an unusual charset.
        Busy: the disk has no room for the upload.

    """
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        sent = f"it came as {kind.decode('latin-1')[:64]}" if kind else "it came without a Content-Type"
        raise _unparsable(
            f"{sent}. Send the recording as multipart/form-data: curl -F file=@voice.ogg -F model=whisper-1"
        )
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise _unparsable("compressed bodies (Content-Encoding) are not supported.")
    if parameters.get(b"charset", b"utf-8").decode("latin-1").strip().lower() not in CHARSETS:
        raise _unparsable("send it in UTF-8.")
    try:
        return await _Parser(request.headers, request.stream(), max_files=MAX_FILES, max_fields=MAX_FIELDS).parse()
    except MultiPartException as failure:
        raise _unparsable(failure.message) from failure
    except OSError as failure:  # large uploads are kept in unnamed files
        logger.error("no room for an upload in the temporary folder: %s", failure.strerror)  # noqa: TRY400 - one line
        raise Busy(
            "The server has no room for this upload at the moment. Try again later.", retry_after=NO_ROOM_RETRY_SECONDS
        ) from failure


def _unparsable(reason: str) -> InvalidRequest:
    return InvalidRequest(f"We could not parse the body of your request: {reason}")


class _Parser(MultiPartParser):
    """Takes two kinds of part without a plain `filename` as uploads.

    They are those with a name in `filename*` alone (RFC 5987), and a `file` whose type is not text.
    """

    _references = 0

    def on_headers_finished(self) -> None:
        """Give the part a file name if it is an upload."""
        part = self._current_part
        disposition = part.content_disposition or b""
        _, options = parse_options_header(disposition)
        if b"filename" not in options:
            # RFC 7578: a part that does not name its type is text.
            kind = dict(part.item_headers).get(b"content-type", b"").strip().lower() or b"text/plain"
            if extended := _EXTENDED_NAME.search(disposition):
                name = bytes(byte for byte in unquote_to_bytes(extended[1]) if byte >= ord(" ") and byte not in b'"\\')
                part.content_disposition = disposition + b'; filename="%b"' % name
            elif options.get(b"name") == b"file" and not kind.startswith(b"text/"):
                part.content_disposition = disposition + b'; filename=""'
        # No more large fields than count, since fields are kept in memory.
        large = options.get(b"name", b"").startswith(b"known_speaker_references") and self._references < MOST_KNOWN
        self._references += large
        self.max_part_size = MAX_REFERENCE_BYTES if large else MAX_FIELD_BYTES
        super().on_headers_finished()
