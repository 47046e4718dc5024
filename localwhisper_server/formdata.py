"""A request's body to its fields and uploads, as the web framework parses them; what it must not be asked to parse."""

import contextlib
import logging
from collections.abc import AsyncIterator

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

from localwhisper_server.errors import Busy, InvalidRequest

logger = logging.getLogger(__name__)

MAX_FIELDS = 200
MAX_FILES = 8
CHARSETS = frozenset(
    {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1", "windows-1252", "cp1252"}
)
NO_ROOM_RETRY_SECONDS = 30.0  # until others' uploads have left the disk


def is_large(request: Request) -> bool:
    """Whether the body is, or may be, one that does not fit in memory.

    A small one is read in any case: it may be the same as one that is being transcribed, and need no room.
    """
    length = request.headers.get("content-length", "")
    return not (length.isascii() and length.isdigit()) or int(length[:20]) > MultiPartParser.spool_max_size


@contextlib.asynccontextmanager
async def parsed(request: Request) -> AsyncIterator[FormData]:
    """Parse the body; the uploads in it are closed if the block fails.

    Raises:
        InvalidRequest: it is no multipart form, too large a one, compressed, or in an odd charset.
        Busy: there is no room for the upload.

    """
    _require_plain(request)
    try:
        data = await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS)
    except UnicodeError as failure:
        raise InvalidRequest("We could not parse the body of your request: it is not in its charset.") from failure
    except OSError as failure:  # uploads wait in unnamed files
        logger.error("no room for an upload in the temporary folder: %s", failure.strerror)  # noqa: TRY400 - said whole
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
            # Halves of characters, which no encoder takes again.
            found.setdefault(name, []).append(value.encode(errors="replace").decode())
    return found


def _require_plain(request: Request) -> None:
    """Refuse a body that is no multipart form, is compressed, or in a charset with a decoder to fear.

    The framework would parse other forms too, and takes a second of the event loop for a megabyte of `&`. It decodes
    each field there with whatever codec of Python's is named; some of them, punycode for one, take minutes for a
    megabyte.
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
