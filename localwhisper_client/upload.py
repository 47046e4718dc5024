"""Makes a request's files fit to be sent more than once.

The SDK turns paths into bytes, and rewinds files before each attempt. Streams that cannot be rewound (pipes, sockets,
generators behind an `io.RawIOBase`) are copied here into a temporary file: in memory if small, else on disk.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

IN_MEMORY = 4 * 1024 * 1024
_CHUNK = 64 * 1024


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._copies.close()

    def _replayable(self, value: Any) -> Any:
        content = _content(value)
        if not _read_once(content):
            return value
        if isinstance(content, os.PathLike):
            # SDK 1 and 2 pass a path inside a tuple on to the HTTP library, which cannot read it.
            return (value[0], self._copies.enter_context(Path(content).open("rb")), *value[2:])
        copy = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - closed with the upload
        self._copies.callback(copy.close)
        for chunk in _chunks(content):
            copy.write(chunk)
        copy.seek(0)
        if isinstance(value, tuple):
            return (value[0], copy, *value[2:])
        return (_name(content), copy)


def _name(content: Any) -> str:
    # The name that the HTTP library would send for the original.
    return PurePath(str(getattr(content, "name", "upload"))).name


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
