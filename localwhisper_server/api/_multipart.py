"""The body of a multipart form to its fields and uploads, with the checks that keep costly bodies from the parser."""

import contextlib
import logging
import re
from collections.abc import AsyncIterator
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from localwhisper_server.errors import Busy, InvalidRequest

logger = logging.getLogger(__name__)

MAX_FIELDS = 200
MAX_FILES = 8
CHARSETS = frozenset(
    {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1", "windows-1252", "cp1252"}
)
# `filename*=UTF-8''caf%C3%A9.ogg`, and the first part of a long one, `filename*0*=UTF-8''caf`.
_EXTENDED_NAME = re.compile(rb"""(?i:;\s*filename\*(?:0\*?)?\s*=\s*"?(?:[\w-]*'[\w-]*')?)([^;"]*)""")
NO_ROOM_RETRY_SECONDS = 30.0  # by then, other uploads may have left the disk


def is_large(request: Request) -> bool:
    """Whether the body is, or may be, too large to be kept in memory.

    A small one is read even when the queue is full: it may repeat a recording that is being transcribed already.
    """
    length = request.headers.get("content-length", "")
    return not (length.isascii() and length.isdigit()) or int(length[:20]) > MultiPartParser.spool_max_size


@contextlib.asynccontextmanager
async def parsed(request: Request) -> AsyncIterator[FormData]:
    """Parse the body; if the block fails, close the uploads.

    Raises:
        InvalidRequest: the body is no multipart form, has too many parts, is compressed, or in an unusual charset.
        Busy: the disk has no room for the upload.

    """
    _require_plain(request)
    try:
        data = await _Parser(request.headers, request.stream(), max_files=MAX_FILES, max_fields=MAX_FIELDS).parse()
    except MultiPartException as failure:
        raise InvalidRequest(f"We could not parse the body of your request: {failure.message}") from failure
    except UnicodeError as failure:
        raise InvalidRequest("We could not parse the body of your request: it is not in its charset.") from failure
    except OSError as failure:  # large uploads are kept in unnamed files
        logger.error("no room for an upload in the temporary folder: %s", failure.strerror)  # noqa: TRY400 - one line
        raise Busy(
            "The server has no room for this upload at the moment. Try again later.", retry_after=NO_ROOM_RETRY_SECONDS
        ) from failure
    try:
        yield data
    except BaseException:
        await data.close()
        raise


def fields(data: FormData) -> dict[str, list[str]]:
    """Return the values of each text field, in order."""
    found: dict[str, list[str]] = {}
    for name, value in data.multi_items():
        if isinstance(value, str):
            # Replaces lone surrogates, which cannot be encoded again.
            found.setdefault(name, []).append(value.encode(errors="replace").decode())
    return found


class _Parser(MultiPartParser):
    """Takes two kinds of part without a plain `filename` as uploads.

    They are those with a name in `filename*` alone (RFC 5987), and a `file` whose type is not text.
    """

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
        super().on_headers_finished()


def _require_plain(request: Request) -> None:
    """Refuse a body that is no multipart form, is compressed, or names a charset outside CHARSETS.

    The framework would parse URL-encoded forms as well, and block the event loop for a second for a megabyte of `&`.
    It would decode fields with any codec of Python's; punycode takes minutes for a megabyte.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        sent = f"it came as {kind.decode('latin-1')[:64]}" if kind else "it came without a Content-Type"
        raise InvalidRequest(
            f"We could not parse the body of your request: {sent}. Send the recording as multipart/form-data: "
            "curl -F file=@voice.ogg -F model=whisper-1"
        )
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise InvalidRequest("Compressed request bodies (Content-Encoding) are not supported. Send it as it is.")
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1").strip().lower()
    if charset not in CHARSETS:
        raise InvalidRequest("We could not parse the body of your request: send it in UTF-8.")
