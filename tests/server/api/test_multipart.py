from __future__ import annotations

import errno
import io
import time
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server.errors import UnreadableAudio
from tests.server.driving import WHOLE, FakeTranscriber, call, make_app, multipart, transcribe

if TYPE_CHECKING:
    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio


INVALID = "invalid_request_error"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "application/json"}, b'{"model":"whisper-1","file":"x"}'),
        ({}, b""),
        ({"content-type": "multipart/form-data; boundary=b", "content-encoding": "gzip"}, multipart()[1]),
    ],
    ids=["json", "nothing", "compressed"],
)
async def test_a_body_that_is_no_form_is_refused(app: ASGIApp, headers: dict[str, str], body: bytes) -> None:
    """The error names the type that was sent, and the type to send."""
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert (answer.status, answer.error["type"]) == (400, INVALID)
    said = "Content-Encoding" if "content-encoding" in headers else "multipart/form-data"
    assert said in answer.error["message"]
    if said == "multipart/form-data":
        assert headers.get("content-type", "without a Content-Type") in answer.error["message"]


def _part(disposition: str, content_type: str = "") -> tuple[dict[str, str], bytes]:
    """Return a form with a model and one part of this head."""
    headers, body = multipart(file=None)
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    part = f"--b\r\nContent-Disposition: form-data; {disposition}\r\n{kind}\r\nsound\r\n--b--"
    return headers, body.replace(b"--b--", part.encode())


@pytest.mark.parametrize(
    ("disposition", "content_type", "name"),
    [
        ("name=\"file\"; filename*=UTF-8''caf%C3%A9.ogg", "", "café.ogg"),
        ("name=\"file\"; filename*=utf-8'en'caf%C3%A9.ogg", "text/plain", "café.ogg"),
        ("name=file;FileName*=\"UTF-8''a%22%0D%0Ab.ogg\"", "", "ab.ogg"),
        ("name=\"file\"; filename*0*=UTF-8''long; filename*1=er.ogg", "", "long"),
        ('filename*=x.ogg; name="file"', "", "x.ogg"),
        ('name="file"', "audio/ogg", ""),
        ('name="file"', "application/octet-stream", ""),
        ('name="file"; filename=""', "", ""),
    ],
)
async def test_a_file_without_a_plain_name(
    app: ASGIApp, transcriber: FakeTranscriber, log: io.StringIO, disposition: str, content_type: str, name: str
) -> None:
    """A part is an upload if its name is in `filename*` alone, or if it is called `file` and is not text."""
    headers, body = _part(disposition, content_type)
    assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).status == 200
    assert transcriber.uploads == [b"sound"]
    assert (f'"{name}"' in log.getvalue()) == bool(name)


@pytest.mark.parametrize("content_type", ["", "text/plain", "Text/Plain; charset=utf-8"])
async def test_a_text_field_called_file_is_no_upload(app: ASGIApp, content_type: str) -> None:
    """RFC 7578: a part without a type is text."""
    headers, body = _part('name="file"', content_type)
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert (answer.status, answer.error["param"]) == (400, "file")


async def test_a_body_that_is_refused_is_not_read(app: ASGIApp) -> None:
    """A megabyte of `&` would block the event loop for a second."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    read = False

    async def receive() -> Any:
        nonlocal read
        read = True
        return {"type": "http.request", "body": b"&" * 1_000_000, "more_body": True}

    async def with_receive(scope: Any, _receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    assert (await call(with_receive, "POST", "/v1/audio/transcriptions", headers)).status == 400
    assert not read


_FORM, _BODY = multipart()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", _BODY),
        ("multipart/form-data; boundary=", _BODY),
        ("multipart/form-data; boundary=other", _BODY),
        ("multipart/form-data; boundary=b", b"no boundary here"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Type: audio/ogg\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n: \r\n\r\n--b--"),
        ("multipart/form-data; boundary=b", multipart(*[(f"f{n}", "x") for n in range(300)])[1]),
        ("multipart/form-data; boundary=b", multipart(("prompt", "x" * 2_000_000))[1]),
        ("multipart/form-data; boundary=b; charset=undefined", _BODY),
    ],
    ids=[
        *("no boundary", "empty boundary", "another boundary", "not multipart", "no name", "bad header", "many fields"),
        *("long field", "no charset"),
    ],
)
async def test_a_form_that_cannot_be_parsed(app: ASGIApp, content_type: str, body: bytes) -> None:
    """400 in the envelope, whatever is wrong with it."""
    answer = await call(app, "POST", "/v1/audio/transcriptions", {"content-type": content_type}, body)
    assert answer.status == 400
    assert answer.error["type"] == INVALID


@pytest.mark.parametrize(
    "charset", ["utf-7", "unicode_escape", "raw_unicode_escape", "nonsense", "utf-16", "rot13", "idna", "punycode"]
)
async def test_an_unusual_charset_is_refused_before_it_is_decoded(app: ASGIApp, charset: str) -> None:
    """Some of Python's codecs take many minutes for half a megabyte, others give lone surrogates."""
    value = "\U00010000\U00010000".encode("punycode").decode() + "a" * 500_000
    _, body = multipart(("language", value), ("response_format", "\\ud800+2AA-"))
    headers = {"content-type": f'multipart/form-data; boundary=b; charset="{charset}"'}
    started = time.monotonic()
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, body)
    assert answer.status == 400
    assert "UTF-8" in answer.error["message"]
    assert time.monotonic() - started < 60


async def test_parts_in_any_order_and_number(app: ASGIApp, transcriber: FakeTranscriber) -> None:
    """Of two values the last counts, of two files the first; other uploads are not read. Old clients name a charset."""
    headers, body = multipart(("language", "de"), ("language", "fr"), file=b"first")
    model = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
    others = b"".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="b.ogg"\r\n\r\nsecond\r\n'.encode()
        for name in ("file", "image")
    )
    body = body.replace(model, b"").replace(b"--b--", others + model + b"--b--")
    for charset in ("", "; charset=UTF-8", '; charset="us-ascii"'):
        headers["content-type"] = f"multipart/form-data; boundary=b{charset}"
        assert (await call(app, "POST", "/v1/audio/transcriptions", headers, body)).status == 200
    assert transcriber.uploads == [b"first"] * 3
    assert transcriber.asked[0].decoding.language == "fr"


async def test_an_upload_to_a_full_disk_is_refused(
    app: ASGIApp, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with `Retry-After`, and one line in the log without a traceback."""

    class Full(io.BytesIO):
        def write(self, _data: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", lambda **_: Full())
    answer = await transcribe(app)
    assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
    assert answer.headers["retry-after"] == "30"
    assert "ERROR" in log.getvalue()
    assert "temporary folder: No space left on device" in log.getvalue()
    assert "Traceback" not in log.getvalue()


@pytest.mark.parametrize(
    "outcome", [WHOLE, UnreadableAudio(), RuntimeError()], ids=["transcribed", "refused", "failed"]
)
@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_large_upload_leaves_no_file(
    outcome: Any, stream: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megabytes go through a temporary file; it is closed however the request ends."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    transcriber = FakeTranscriber([outcome])
    data = bytes(range(256)) * 20_000
    await transcribe(make_app(transcriber), ("stream", stream), file=data)
    assert transcriber.uploads == [data]
    assert transcriber.sources[0].closed
    assert not list(tmp_path.iterdir())
