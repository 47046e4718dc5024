"""What the routing reads in an SDK request: what it is for, the fields that it will send, and its files.

The SDK turns paths into bytes, and rewinds files before each attempt. Streams that cannot be rewound (pipes, sockets,
generators behind an `io.RawIOBase`) are copied by `Upload` into a temporary file: in memory if small, else on disk.
"""

from __future__ import annotations

import copy
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

import openai

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPEECH_TO_TEXT = frozenset({"audio/transcriptions", "audio/translations"})
_REALTIME = frozenset({"realtime", "live"})
# These paths end a session and send no audio.
_ENDINGS = frozenset({"hangup", "reject"})
_AFTER_A_NAME = re.compile(r"[;?#].*", re.DOTALL)
_UNSEEN = re.compile(r"[\x00-\x20\x7f]")
IN_MEMORY = 4 * 1024 * 1024
_CHUNK = 64 * 1024


def segments(path: str) -> list[str]:
    """Return the segments of a path as a server may read them, in lower case.

    A server may take `/audio/x/../Transcriptions;a` or `/audio%2Ftranscriptions` for the speech-to-text endpoint.
    """
    # A path that is encoded twice may be decoded twice on its way.
    while (plain := unquote(path)) != path:
        path = plain
    found: list[str] = []
    for part in path.lower().replace("\\", "/").split("/"):
        name = _UNSEEN.sub("", _AFTER_A_NAME.sub("", part))
        if name == "..":
            del found[-1:]
        elif name not in ("", "."):
            found.append(name)
    return found


def endpoint(client: Any, options: Any) -> str | None:
    """Return the speech-to-text endpoint of a request, such as `/audio/transcriptions`; None for any other request."""
    if options.method.lower() != "post":
        return None
    base, path = urlsplit(str(client.base_url)).path, urlsplit(options.url).path
    last = "/".join(segments(f"{base}/{path}")[-2:])
    return f"/{last}" if last in _SPEECH_TO_TEXT else None


def is_realtime(url: str) -> bool:
    """Whether a WebSocket at this URL is a realtime session of OpenAI's API, on any host."""
    path = segments(urlsplit(url).path)
    before = zip(["", *path], path, strict=False)
    return path[-1:] == ["realtime"] or any(name in _REALTIME and of in ("v1", "openai") for of, name in before)


def starts_realtime(options: Any) -> bool:
    """Whether a request opens a realtime session, or makes the key with which another program opens one."""
    path = segments(urlsplit(options.url).path)
    here = bool(path) and (path[0] in _REALTIME or is_realtime(options.url))
    return here and options.method.lower() == "post" and path[-1] not in _ENDINGS


def fields(options: Any) -> Mapping[str, Any]:
    """Return the fields of a request's body; empty if the program wrote the body itself."""
    return options.json_data if isinstance(options.json_data, Mapping) else {}


def as_sent(options: Any) -> Any:
    """Return a request with the fields that it will send: those in `extra_body` override the arguments."""
    if options.json_data is not None and not isinstance(options.json_data, Mapping):
        return options
    if getattr(options, "content", None) is not None:
        return options
    sent = copy.copy(options)
    merged = {**fields(options), **(options.extra_json or {})}
    sent.json_data = {name: value for name, value in merged.items() if not isinstance(value, openai.Omit)}
    sent.extra_json = None
    if isinstance(stream := sent.json_data.get("stream"), str):
        sent.json_data["stream"] = stream.strip().lower() in ("true", "1")
    return sent


def needs_copy(files: Any) -> bool:
    """Whether any of a request's files can be sent only once."""
    return any(_read_once(_content(value)) for _, value in _items(files))


class Upload:
    """A request's files, each of which every attempt can send from its beginning.

    `files` is what the SDK's request options hold: pairs or a mapping of field name to bytes, an open file, or a tuple
    of file name, content and so on. The constructor blocks while it copies a stream.
    """

    def __init__(self, files: Any) -> None:
        self._copies = ExitStack()
        self.files = files
        if needs_copy(files):
            try:
                self.files = [(name, self._replayable(value)) for name, value in _items(files)]
            except BaseException:
                self._copies.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._copies.close()

    def _replayable(self, value: Any) -> Any:
        content = _content(value)
        if not _read_once(content):
            return value
        if isinstance(content, os.PathLike):
            # SDK 1 and 2 pass a path inside a tuple on to the HTTP library, which cannot read it.
            return (value[0], self._copies.enter_context(Path(content).open("rb")), *value[2:])
        copied = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - closed with the upload
        self._copies.callback(copied.close)
        for chunk in _chunks(content):
            copied.write(chunk)
        copied.seek(0)
        if isinstance(value, tuple):
            return (value[0], copied, *value[2:])
        # The name that the HTTP library would send for the original.
        return (PurePath(str(getattr(content, "name", "upload"))).name, copied)


def _items(files: Any) -> list[tuple[str, Any]]:
    return list(files.items() if hasattr(files, "items") else files or ())


def _content(value: Any) -> Any:
    return value[1] if isinstance(value, tuple) else value


def _read_once(content: Any) -> bool:
    if isinstance(content, (bytes, bytearray, memoryview, str)):
        return False
    seekable = getattr(content, "seekable", None)
    if seekable is not None:
        return not seekable()
    # A file-like object without `seekable`: it can be rewound if it has `seek`.
    return not hasattr(content, "seek")


def _chunks(content: Any) -> Iterator[bytes]:
    if not hasattr(content, "read"):
        yield from content
        return
    while chunk := content.read(_CHUNK):
        yield chunk
