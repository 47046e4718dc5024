"""Uploads that attack the decoder. Each is made in the test that needs it; none is a file of the repository."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

from tests.server.sound import encode, tone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# An Opus packet (RFC 6716 §3.1) of three frames of CELT, 20 ms each, of no bytes at all (code 3): silence.
OPUS_SILENCE = bytes([0b11111011, 3])
OPUS_PACKET_SAMPLES = 3 * 960


def _crc(page: bytes) -> int:
    """Return Ogg's checksum (RFC 3533 §6)."""
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ _CRC[(value >> 24) ^ byte]
    return value


def _crc_table() -> list[int]:
    table = []
    for index in range(256):
        value = index << 24
        for _ in range(8):
            value = ((value << 1) ^ 0x04C11DB7) & 0xFFFFFFFF if value & 0x80000000 else value << 1
        table.append(value)
    return table


_CRC = _crc_table()


def _page(kind: int, granule: int, number: int, packets: list[bytes]) -> bytes:
    lacing = bytes(len(packet) for packet in packets)  # all of them are shorter than 255
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, kind, granule, 1, number, 0, len(lacing)) + lacing
    page = bytearray(head + b"".join(packets))
    page[22:26] = struct.pack("<I", _crc(page))
    return bytes(page)


def opus_of_silence(*, hours: float) -> bytes:
    """Return Ogg Opus of so many hours of silence, in a few bytes."""
    packets = round(hours * 3600 * 48_000 / OPUS_PACKET_SAMPLES)
    pages = [
        _page(2, 0, 0, [b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0)]),
        _page(0, 0, 1, [b"OpusTags" + struct.pack("<I4sI", 4, b"none", 0)]),
    ]
    sent = 0
    while sent < packets:
        count = min(255, packets - sent)
        sent += count
        last = 4 if sent == packets else 0
        pages.append(_page(last, sent * OPUS_PACKET_SAMPLES, len(pages), [OPUS_SILENCE] * count))
    return b"".join(pages)


def without_end(ogg: bytes) -> bytes:
    """Replace the last pages with zeros, so that no header has the length."""
    return ogg[: -len(ogg) // 50] + bytes(70_000)


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(50_000_000))
    return file.getvalue()


def _png() -> bytes:
    """Return a picture of 30,000 by 30,000 points in a megabyte, which takes more than a gigabyte when unpacked."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compress(bytes(30_001 * 3000), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))
        + part(b"IDAT", packed)
        + part(b"IEND", b"")
    )


def _mov_that_points(canary: Path) -> bytes:
    """Return a QuickTime file that refers to another file for its sound."""
    data = encode(tone(1.0, 48_000), container="mov", codec="pcm_s16le", rate=48_000)
    path = str(canary).encode()
    alias = struct.pack(">I4sI", 12 + len(path), b"url ", 0) + path
    at = data.index(b"dref")
    old = struct.unpack(">I", data[at + 12 : at + 16])[0]
    grown = bytearray(data[: at + 12] + alias + data[at + 12 + old :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        where = grown.index(name) - 4
        size = struct.unpack(">I", grown[where : where + 4])[0]
        grown[where : where + 4] = struct.pack(">I", size + len(alias) - old)
    mdat = grown.index(b"mdat")
    grown[mdat:] = b"free" + bytes(len(grown) - mdat - 4)
    return bytes(grown[: mdat + 4])


def _playlist(text: str) -> Callable[[Path, int], bytes]:
    return lambda canary, port: text.format(canary=canary, port=port).encode()


# By name: a function from the path of a file that must not be read, and a port that must not be called, to an upload.
REFUSED: dict[str, Callable[[Path, int], bytes]] = {
    "m3u8 to a file": _playlist("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{canary}\n#EXT-X-ENDLIST\n"),
    "m3u8 to the network": _playlist(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n"
    ),
    "m3u8 by concat": _playlist("#EXTM3U\n#EXTINF:1,\nconcat:{canary}|http://127.0.0.1:{port}/\n#EXT-X-ENDLIST\n"),
    "ffconcat to a file": _playlist("ffconcat version 1.0\noption safe 0\nfile {canary}\n"),
    "ffconcat to the network": _playlist("ffconcat version 1.0\noption safe 0\nfile http://127.0.0.1:{port}/a.wav\n"),
    "sdp": _playlist("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"),
    "dash": _playlist(
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation>'
        "<BaseURL>http://127.0.0.1:{port}/a</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ),
    "asx": _playlist('<asx version="3.0"><entry><ref href="http://127.0.0.1:{port}/a.wma"/></entry></asx>'),
    "a url": _playlist("http://127.0.0.1:{port}/a.wav"),
    "a path": _playlist("file://{canary}"),
    "subtitles": lambda *_: b"1\n00:00:00,000 --> 00:00:09,000\nhello\n\n" * 500,
    "webvtt": lambda *_: b"WEBVTT\n\n00:00.000 --> 00:09.000\nhello\n\n",
    "svg": _playlist(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink">'
        '<image x:href="http://127.0.0.1:{port}/a.png"/></svg>'
    ),
    "a picture bomb": lambda *_: _png(),
    "a zip bomb": lambda *_: _zip(),
    "a gzip bomb": lambda *_: zlib.compress(bytes(100_000_000), 9, 31),
    "nuls": lambda *_: bytes(1_000_000),
    "ten hours of opus": lambda *_: opus_of_silence(hours=10),
    "sound elsewhere": lambda canary, _: _mov_that_points(canary),
    "a wave of one sample a second": lambda *_: (
        b"RIFF\xff\xff\xff\x7fWAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 1, 2, 2, 16)
        + b"data\xff\xff\xff\x7f"
        + bytes(99_999)
    ),
}
