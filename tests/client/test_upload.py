from __future__ import annotations

import io
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_client.request import IN_MEMORY, Upload, needs_copy
from tests.client.fault_server import TEXT, error, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.client.driving import Driver
    from tests.client.fault_server import FaultServer

AUDIO = bytes(range(256)) * 1000


class Pipe(io.RawIOBase):
    """A stream that can be read once, fed by a generator."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return next(self._chunks, b"")


class OldStyle:
    """A file-like object from before `seekable` was invented."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        return self._data.read(size)


def pipe(data: bytes = AUDIO) -> Pipe:
    """Return a stream that gives out the data once."""
    return Pipe(data[i : i + 9999] for i in range(0, len(data), 9999))


def named(stream: Any, name: str) -> Any:
    """Give a stream a name."""
    stream.name = name
    return stream


def half_read() -> io.BytesIO:
    """Return a buffer that stands in the middle."""
    stream = io.BytesIO(AUDIO)
    stream.read(1000)
    return stream


KINDS: dict[str, tuple[Callable[[Path], Any], bytes]] = {
    "path": (lambda path: path, b'filename="voice.ogg"'),
    "open file": (lambda path: path.open("rb"), b'filename="voice.ogg"'),
    "unbuffered file": (lambda path: path.open("rb", buffering=0), b'filename="voice.ogg"'),
    "bytes": (lambda _: AUDIO, b'filename="upload"'),
    "BytesIO": (lambda _: io.BytesIO(AUDIO), b'filename="upload"'),
    "BytesIO that was read from": (lambda _: half_read(), b'filename="upload"'),
    "named BytesIO": (lambda _: named(io.BytesIO(AUDIO), "x/note.ogg"), b'filename="note.ogg"'),
    "tuple of bytes": (lambda _: ("a.ogg", AUDIO), b'filename="a.ogg"'),
    "tuple of path": (lambda path: ("a.ogg", path), b'filename="a.ogg"'),
    "tuple of stream": (lambda _: ("a.ogg", io.BytesIO(AUDIO), "audio/ogg"), b"Content-Type: audio/ogg"),
    "pipe": (lambda _: pipe(), b'filename="upload"'),
    "named pipe": (lambda _: named(pipe(), "x/note.ogg"), b'filename="note.ogg"'),
    "tuple of pipe": (lambda _: ("a.ogg", pipe(), "audio/ogg"), b"Content-Type: audio/ogg"),
    "tuple of generator": (lambda _: ("a.ogg", iter([AUDIO[:5], AUDIO[5:]])), b'filename="a.ogg"'),
    "tuple of old-style file": (lambda _: ("a.ogg", OldStyle(AUDIO)), b'filename="a.ogg"'),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_sent_first_is_sent_whole_the_second_time(
    kind: str, drive: Driver, cloud: FaultServer, tmp_path: Path
) -> None:
    """Every kind of file the SDK takes arrives twice, under the same name, with the same bytes."""
    path = tmp_path / "voice.ogg"
    path.write_bytes(AUDIO)
    make, sign = KINDS[kind]
    file = make(path)
    with serving(error(500)) as local_server:
        client = drive.client(local_base_url=local_server.url, policy="cloud")
        assert drive.call(client, file=file) == TEXT
        bodies = [local_server.calls[0].body, cloud.calls[0].body]
    for body in bodies:
        assert AUDIO in body
        assert sign in body
    if hasattr(file, "close"):
        file.close()


def test_a_path_inside_a_tuple_is_opened_and_closed(tmp_path: Path) -> None:
    """Under every SDK, though not every SDK does so itself."""
    path = tmp_path / "voice.ogg"
    path.write_bytes(AUDIO)
    with Upload([("file", ("a.ogg", path, "audio/ogg"))]) as opened:
        name, file, kind = opened.files[0][1]
        assert (name, file.read(), kind) == ("a.ogg", AUDIO, "audio/ogg")
    assert file.closed


def test_what_can_be_rewound_is_not_copied() -> None:
    """The very same object goes on."""
    files = [("file", ("a", io.BytesIO(AUDIO))), ("other", b"x")]
    with Upload(files) as kept:
        assert kept.files is files
    with Upload(None) as nothing:
        assert nothing.files is None
    with Upload([("file", pipe()), ("other", b"x")]) as mixed:
        assert mixed.files[1] == ("other", b"x")
    assert needs_copy({"file": pipe()})
    assert not needs_copy({"file": "text"})


def test_a_large_stream_is_copied_to_disk_and_the_copy_goes_away() -> None:
    """Memory holds no more than its share; after the call nothing holds the file."""
    chunks = (bytes(1024 * 1024) for _ in range(IN_MEMORY // (1024 * 1024) + 1))
    with Upload({"file": Pipe(chunks)}) as copied:
        copy = copied.files[0][1][1]
        assert copy._rolled
        assert len(copy.read()) > IN_MEMORY
    assert copy.closed


def test_a_stream_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets its own error; the half-made copy is closed."""
    made = []

    def spool(**options: Any) -> Any:
        made.append(io.BytesIO())
        return made[-1]

    def broken() -> Iterator[bytes]:
        yield b"some"
        raise OSError("unplugged")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", spool)
    with pytest.raises(OSError, match="unplugged"):
        Upload([("file", Pipe(broken()))])
    assert made[0].closed
