from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from localwhisper_server import server
from localwhisper_server.api.access_control import Rules
from localwhisper_server.api.middleware import Limits
from localwhisper_server.api.protocol import HttpProtocol
from localwhisper_server.api.upstream import KEPT_FROM_CALLER, Upstream, may_leave, to_upstream, without
from localwhisper_server.settings import Settings
from tests.server.driving import TEXT, FakeTranscriber, call, make_app, multipart
from tests.server.listening import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio

KEY = "lw-0123456789abcdef"
SPEECH = bytes(range(256)) * 2000
EVENTS = [
    {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    for choice in (
        {"index": 0, "delta": {"role": "assistant", "content": "Grüß"}},
        {"index": 0, "delta": {"content": " Gott"}, "finish_reason": "stop"},
    )
]
COMPLETION = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
LIMITED = {"error": {"message": "no", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}
# Of each path: the status, the headers, and the parts of the body.
ANSWERS: dict[str, tuple[int, dict[str, str], list[bytes]]] = {
    "/v1/chat/completions": (200, {"content-type": "application/json"}, [json.dumps(COMPLETION).encode()]),
    "/v1/audio/speech": (
        200,
        {"content-type": "audio/mpeg"},
        [SPEECH[:300_000], SPEECH[300_000:]],
    ),
    "/v1/cut": (200, {"content-length": "100"}, [b"half"]),
    "/v1/moved": (307, {"location": "https://elsewhere.example/"}, []),
    "/v1/files": (429, {"content-type": "application/json", "retry-after": "7"}, [json.dumps(LIMITED).encode()]),
}


class FakeOpenAI:
    """Answers as in ANSWERS; keeps what it was asked. Of a stream, it sends the second event when told to."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.left = threading.Event()

    def go_on(self) -> None:
        """Send the second event; called from the test's thread."""
        self._loop.call_soon_threadsafe(self._told.set)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        target = scope["raw_path"].decode() + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        self.seen.append((scope["method"], target, headers, body))
        status, fields, parts = ANSWERS[scope["path"]]
        streamed = b'"stream":true' in body
        if streamed:
            fields = {"content-type": "text/event-stream; charset=utf-8"}
            parts = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in EVENTS] + [b"data: [DONE]\n\n"]
        fields = {"x-request-id": "req_theirs", "set-cookie": "__cf=1", **fields}
        raw = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        for number, part in enumerate(parts):
            if streamed and number == 1 and not await self._told_to_go_on(receive):
                self.left.set()
                return
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if scope["path"] != "/v1/cut":
            await send({"type": "http.response.body", "body": b""})

    async def _told_to_go_on(self, receive: Any) -> bool:
        """Wait for `go_on`, or for the caller to hang up."""
        waiting = [asyncio.ensure_future(event) for event in (self._told.wait(), receive())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        return self._told.is_set()


class Two:
    """A fake OpenAI and a server in front of it, both on real sockets, with an SDK client of each."""

    def __init__(self, fake: FakeOpenAI, *urls: str) -> None:
        self.fake = fake
        self.clients = [openai.OpenAI(base_url=url, api_key="sk-callers-own", max_retries=0) for url in urls]
        self.direct, self.through = self.clients

    def both(self, ask: Any) -> Any:
        """Ask both the same; return their answer, which must be the same, as must be what the upstream saw."""
        direct, through = ask(self.direct), ask(self.through)
        assert direct == through
        first, second = (
            (*seen[:2], {name: value for name, value in seen[2].items() if name not in ("host", "connection")}, seen[3])
            for seen in self.fake.seen[-2:]
        )
        assert first == second
        return through


@pytest.fixture
def two() -> Iterator[Two]:
    """Give both; close them at the end."""
    fake = FakeOpenAI()
    with serving(fake, lifespan="off") as (_, far):
        upstream = Upstream(f"http://127.0.0.1:{far}/v1/")

        @contextlib.asynccontextmanager
        async def lifespan(_app: Any) -> AsyncIterator[None]:
            yield
            await upstream.aclose()

        with serving(make_app(upstream=upstream, lifespan=lifespan), http=HttpProtocol) as (_, near):
            pair = Two(fake, f"http://127.0.0.1:{far}/v1", f"http://127.0.0.1:{near}/v1")
            with pair.direct, pair.through:
                yield pair


def _chat(client: openai.OpenAI, **how: Any) -> Any:
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi é"}], **how)


def test_chat(two: Two) -> None:
    """Method, query, body and the caller's own key arrive as they were sent."""
    assert two.both(lambda client: _chat(client, extra_query={"a": "b c", "d": "/?&"}).model_dump())["id"] == "c1"
    assert two.fake.seen[-1][1].startswith("/v1/chat/completions?")
    assert two.fake.seen[-1][2]["authorization"] == "Bearer sk-callers-own"


def test_chat_stream_arrives_as_it_is_sent(two: Two) -> None:
    """The first event arrives before the second is sent."""
    for client in two.clients:
        events = iter(_chat(client, stream=True))
        first = next(events)
        two.fake.go_on()
        assert [event.model_dump(exclude_unset=True) for event in (first, *events)] == EVENTS


def test_speech(two: Two) -> None:
    """Every byte of the sound arrives, and its type."""

    def say(client: openai.OpenAI) -> tuple[bytes, str]:
        with client.audio.speech.with_streaming_response.create(model="m", voice="v", input="hi") as response:
            return b"".join(response.iter_bytes()), response.headers["content-type"]

    assert two.both(say) == (SPEECH, "audio/mpeg")


def test_errors_keep_their_class_and_id(two: Two) -> None:
    """The id is the upstream's, for which its support asks."""

    def ask(client: openai.OpenAI) -> tuple[Any, ...]:
        with pytest.raises(openai.RateLimitError) as caught:
            client.get("/files", cast_to=object)
        return caught.value.request_id, caught.value.code, caught.value.response.headers["retry-after"]

    assert two.both(ask) == ("req_theirs", "rate_limit_exceeded", "7")


def test_redirects_cookies_and_chunked_bodies(two: Two) -> None:
    """A redirect is passed back, cookies are passed on in neither direction, a body may announce no length."""
    with httpx2.Client(trust_env=False) as client:
        headers = {"cookie": "session=1", "x-kept": "yes"}
        answer = client.post(f"{two.through.base_url}moved", headers=headers, content=iter([b'{"a":', b"1}"]))
    assert answer.status_code == 307
    assert "set-cookie" not in answer.headers
    assert len(answer.headers.get_list("date")) == 1
    _, _, seen, body = two.fake.seen[-1]
    assert (seen.get("cookie"), seen["x-kept"], body) == (None, "yes", b'{"a":1}')


def test_hanging_up_closes_the_request_upstream(two: Two) -> None:
    """A stream that is not read costs money."""
    stream = _chat(two.through, stream=True)
    next(iter(stream))
    stream.close()
    two.through.close()
    assert two.fake.left.wait(60)


def test_an_incomplete_answer_is_incomplete_here(two: Two) -> None:
    """It does not look complete."""
    for client in two.clients:
        with httpx2.Client(trust_env=False) as http, pytest.raises(httpx2.RemoteProtocolError):
            http.get(f"{client.base_url}cut")


# Never a recording


OK = httpx2.Response(200, content=b"{}")


def _before(answer: httpx2.Response | Exception = OK, **given: Any) -> tuple[ASGIApp, list[httpx2.Request]]:
    """Return an app before an upstream that always answers this, and a list of what it was asked.

    `given` has the `keys` of this server and its `own_key` for the upstream.
    """
    asked = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        if isinstance(answer, Exception):
            raise answer
        return httpx2.Response(answer.status_code, headers=answer.headers, stream=httpx2.ByteStream(answer.content))

    upstream = Upstream("https://api.example/v1", transport=httpx2.MockTransport(handle), **given)
    return make_app(rules=Rules(keys=given.get("keys", ())), upstream=upstream), asked


DISGUISED = r"""
/v1/audio/transcriptions/ /v1/chat/../audio/transcriptions /v1/audio/%74ranscriptions
/v1/audio%2Ftranscriptions /v1/audio%252Ftranscriptions /v1/chat/%2e%2e/audio/transcriptions
/v1/audio\transcriptions /v1/audio%5Ctranscriptions /v1/Audio/Transcriptions /V1/audio/transcriptions
/v1/audio/transcriptions;v=1 /v1/audio/transcriptions%00 /v1/audio/transcriptions%20 /v1/audio/voices
/v1/openai/deployments/d/audio/transcriptions /v1/realtime/translations /v1/audio /v1/ /v1
/audio/transcriptions/ /chat/completions http://api.example/v1/audio/transcriptions
"""


@pytest.mark.parametrize("path", DISGUISED.split())
async def test_no_spelling_of_a_path_takes_a_recording_out(path: str) -> None:
    """Every spelling of the path is a 404, even one that the upstream might not understand."""
    app, asked = _before()
    headers, body = multipart()
    assert (await call(app, "POST", path, headers, body)).status == 404
    assert (await call(app, "PUT", "/v1/audio/transcriptions", headers, body)).status == 405
    assert not asked


@pytest.mark.parametrize("path", ["/v1//audio/transcriptions", "/v1/audio//transcriptions"])
async def test_a_doubled_slash_is_ours(path: str) -> None:
    """It counts as one slash, so the recording is answered here."""
    app, asked = _before()
    headers, body = multipart()
    assert (await call(app, "POST", path, headers, body)).json()["text"] == TEXT
    assert (await call(app, "POST", "/v1//chat/completions", {"content-length": "1"}, b"x")).status == 200
    assert [request.url.raw_path for request in asked] == [b"/v1/chat/completions"]


async def test_other_paths_do_leave() -> None:
    """Without this, the tests above would prove nothing."""
    app, asked = _before()
    for path in ("/v1/chat/completions", "/v1/audio/speech", "/v1/files/", "/v1/ft%3Agpt", "/v1/responses/r_1"):
        assert (await call(app, "POST", path, {"content-length": "1"}, b"x")).status == 200
        assert (await call(app, "POST", path, {"content-type": " Audio/WAV"}, b"x")).status == 404
    assert [request.url.raw_path for request in asked] == [
        b"/v1/chat/completions",
        b"/v1/audio/speech",
        b"/v1/files/",
        b"/v1/ft%3Agpt",
        b"/v1/responses/r_1",
    ]
    assert {request.url.host for request in asked} == {"api.example"}


@given(st.binary(max_size=40))
def test_a_path_that_leaves_is_plain(tail: bytes) -> None:
    """No path that leaves can be read as one for recordings, and none raises an exception."""
    path = b"/v1/" + tail
    if may_leave(path):
        assert b".." not in path.split(b"/")
        assert b"//" not in path
        assert b"transcriptions" not in path.lower().split(b"/")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/v1/chat/completions", b"audio/ogg"),
        (b"/v1/chat/completions", b'"Audio/ogg"'),
        (b"/v1/chat/completions", b"application/ogg; charset=x"),
        (b"/v1/audio/speech", b"multipart/form-data; boundary=x"),
        (b"/v1/realtime", b"application/json"),
        (b"/v1/realtime/calls", b"application/sdp"),
    ],
)
def test_a_request_that_may_hold_sound_stays(path: bytes, kind: bytes) -> None:
    """Type and path decide."""
    assert not may_leave(path, [(b"content-type", kind)])
    assert may_leave(b"/v1/audio/speech", [(b"content-type", b"application/json")])


# Headers


def test_hop_by_hop_headers_stop_here() -> None:
    """So do those that a Connection header names, and those that would reveal the LAN."""
    kept = [(b"accept", b"*/*"), (b"Authorization", b"Bearer sk-x"), (b"x-stainless-os", b"Linux")]
    dropped = [
        (b"Connection", b"close, X-Secret"),
        (b"x-secret", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"te", b"trailers"),
        (b"upgrade", b"h2c"),
        (b"proxy-authorization", b"Basic x"),
        (b"host", b"pc.lan:5000"),
        (b"cookie", b"a=b"),
        (b"x-forwarded-for", b"192.168.1.5"),
        (b"x-localwhisper-key", KEY.encode()),
        (b"origin", b"http://pc.lan:5000"),
    ]
    expected = [(name.lower(), value) for name, value in kept]
    assert to_upstream([*dropped, *kept], ()) == expected
    back = [(b"content-type", b"text/plain"), (b"content-encoding", b"gzip")]
    assert without([(b"Date", b"now"), (b"keep-alive", b"5"), *back], KEPT_FROM_CALLER) == back


# Every sign that a key may have in it.
SIGNS = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in ',;"')


@pytest.mark.parametrize("key", [KEY, "a", "k:e=y==", "a+b%20c&d", SIGNS, "'quoted'", "Bearer"])
@pytest.mark.parametrize(
    "form",
    ["Bearer {}", "bearer  {} ", "{}", "Bearer\t{}", 'Token token="{}"', "x={}", "Bearer x, Bearer {};a=1", "Basic {}"],
)
def test_no_usable_key_leaves_in_a_header(key: str, form: str) -> None:
    """Neither do keys of unusual signs; a header that only resembles one is passed on."""
    others = [(b"authorization", b"Basic not base64"), (b"x-note", b"a" + KEY.encode())]
    assert to_upstream(others, ("another", KEY)) == others
    for inside in (f"{key}:x", f"x:{key}") if form == "Basic {}" and ":" not in key else (f"x:{key}",):
        shown = base64.b64encode(inside.encode()).decode() if form == "Basic {}" else key
        assert to_upstream([(b"authorization", form.format(shown).encode())], ("other", key)) == []


@pytest.mark.parametrize("key", [KEY, "a", "k:e=y==", "a+b%20c&d", SIGNS])
@pytest.mark.parametrize("name", ["api_key", "key", "token", ""])
async def test_no_usable_key_leaves_in_a_query(key: str, name: str) -> None:
    """It is encoded as browsers and libraries encode it; the rest of the query is passed on."""
    app, asked = _before(keys=("other", key))
    headers = {"x-localwhisper-key": "other"}
    await call(app, "GET", "/v1/files", headers, query=f"b=2&{name}={quote(key, safe='')}&a=1")
    await call(app, "GET", "/v1/files", headers, query=f"{name}={quote(key, safe='')}")
    assert [request.url.query for request in asked] == [b"b=2&a=1", b""]
    assert list(asked[0].headers) == ["host"]  # the HTTP library adds none of its own


@pytest.mark.parametrize("key", ["two words", "a,b", "a;b", 'a"b', "tab\tbed", "nul\0", "schlüssel", "", "a\u00a0b"])
def test_a_key_that_cannot_be_told_apart_is_refused_at_the_start(key: str, tmp_path: Path) -> None:
    """A key may not have in it what separates the words of a header; the message does not show the key."""
    with pytest.raises(ValueError, match="a key may hold") as failure:
        Settings(api_key=(SecretStr(key),)).keys()
    assert not key or key not in str(failure.value)
    if key:
        (tmp_path / "keys").write_text(f"{KEY}\n{key}\n")
        with pytest.raises(server.Misconfigured, match="a key may hold"):
            server.access_rules(Settings(api_key_file=tmp_path / "keys"), ())


# The upstream's models, and its key

GPT = {"id": "gpt-5", "object": "model", "created": 1, "owned_by": "openai"}
THEIRS = {"object": "list", "data": [GPT, {"id": "whisper-1", "owned_by": "openai"}]}


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1//models"])
async def test_the_list_of_models_is_this_servers_and_the_upstreams(path: str) -> None:
    """A name that both have is listed once. The upstream is asked with the caller's headers."""
    app, asked = _before(httpx2.Response(200, json=THEIRS))
    headers = {"authorization": "Bearer sk-mine", "accept-encoding": "br", "content-type": "application/json"}
    listed = (await call(app, "GET", path, headers)).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [*FakeTranscriber().names, "gpt-5"]
    assert listed["data"][-1] == GPT
    (request,) = asked
    assert (request.method, str(request.url)) == ("GET", "https://api.example/v1/models")
    assert request.headers["authorization"] == "Bearer sk-mine"
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("slow"),
        httpx2.Response(401, json={"error": {}}),
        httpx2.Response(999),
        *(httpx2.Response(200, json=wrong) for wrong in ([], {"data": None}, {"data": [1]})),
        *(httpx2.Response(200, content=wrong) for wrong in (b"<html>", b"[" * 100_000, b" " * 5_000_000)),
    ],
    ids=lambda answer: str(answer)[:40],
)
async def test_without_the_upstreams_list_this_servers_is_shown(answer: Any) -> None:
    """Speech-to-text works without the internet."""
    app, _ = _before(answer)
    listed = await call(app, "GET", "/v1/models")
    assert [model["id"] for model in listed.json()["data"]] == list(FakeTranscriber().names)


@pytest.mark.parametrize("path", ["/v1/models/gpt-5", "/models/gpt-5", "/v1/models/anthropic/claude"])
async def test_a_model_of_the_upstreams(path: str) -> None:
    """It is asked for there; a model of this server's is answered here."""
    app, asked = _before(httpx2.Response(200, json=GPT))
    assert (await call(app, "GET", path)).json() == GPT
    assert str(asked[0].url) == f"https://api.example/v1/models/{path.partition('/models/')[2]}"
    for ours in ("base", "whisper-1", "openai/whisper-large-v3"):
        assert (await call(app, "GET", f"/v1/models/{ours}")).json()["owned_by"] == "localwhisper"
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (httpx2.Response(404, json={"error": {"code": "x"}}), 404),
        (httpx2.ConnectError(""), 502),
        (httpx2.Response(999), 502),
    ],
    ids=["not there", "unreachable", "no status"],
)
async def test_a_model_that_the_upstream_does_not_give(answer: Any, status: int) -> None:
    """Its own answer is passed back; without one there is an error in the envelope."""
    app, _ = _before(answer)
    found = await call(app, "GET", "/v1/models/gpt-6")
    assert (found.status, "error" in found.json()) == (status, True)


@pytest.mark.parametrize("name", ["../audio/transcriptions", "a//b", "%2e%2e", "audio/../transcriptions", "x?y"])
async def test_no_name_of_a_model_leads_to_another_path(name: str) -> None:
    """The upstream is asked for paths below /models alone."""
    app, asked = _before(httpx2.Response(200, json=GPT))
    answer = await call(app, "GET", f"/v1/models/{name}")
    assert answer.status in (200, 404)
    assert all(
        request.url.raw_path.startswith(b"/v1/models/") and b".." not in request.url.raw_path for request in asked
    )


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"authorization": f"Bearer {KEY}"}, "Bearer sk-lan"),
        ({"x-localwhisper-key": KEY}, "Bearer sk-lan"),
        ({"x-localwhisper-key": KEY, "authorization": "Bearer sk-mine"}, "Bearer sk-mine"),
        ({"x-localwhisper-key": KEY, "api-key": "mine"}, None),
        ({}, None),
        ({"authorization": "Bearer sk-mine"}, None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/files", "/v1/models", "/v1/models/gpt-5"])
async def test_the_servers_own_key_for_the_upstream(path: str, headers: dict[str, str], sent: str | None) -> None:
    """It replaces this server's key. A caller's own key for the upstream is passed on; without a key there is a 401."""
    app, asked = _before(httpx2.Response(200, json=THEIRS), keys=(KEY,), own_key="sk-lan")
    answer = await call(app, "GET", path, headers)
    assert [request.headers.get("authorization") for request in asked] == ([sent] if answer.status == 200 else [])
    assert all(KEY not in str(request.headers.raw) for request in asked)


def test_the_upstreams_key_is_read_from_an_option_or_a_file(tmp_path: Path) -> None:
    """It needs a key of this server's: without, anyone on the LAN could spend its money."""
    file = tmp_path / "key"
    file.write_text("# OpenAI's\nsk-lan\n")
    behind: dict[str, Any] = {"upstream": "https://api.example/v1", "api_key": (SecretStr(KEY),)}
    assert Settings(**behind).upstream_key() is None
    assert Settings(**behind, upstream_api_key=SecretStr("sk-x")).upstream_key() == "sk-x"
    assert Settings(**behind, upstream_api_key_file=file).upstream_key() == "sk-lan"
    for missing, needed in (("upstream", "needs --upstream"), ("api_key", "needs --api-key")):
        rest = {name: value for name, value in behind.items() if name != missing}
        with pytest.raises(ValueError, match=needed):
            Settings(**rest, upstream_api_key_file=file)
    file.write_text("one\ntwo\n")
    with pytest.raises(server.Misconfigured, match="more than one key"):
        server.upstream(Settings(**behind, upstream_api_key_file=file), (KEY,))


@pytest.mark.parametrize(
    ("headers", "status", "authorization"),
    [
        ({"x-localwhisper-key": KEY, "authorization": "Bearer sk-mine"}, 200, "Bearer sk-mine"),
        ({"x-localwhisper-key": KEY}, 200, None),
        ({"authorization": f"Bearer {KEY}"}, 200, None),
        ({"authorization": f"bearer  {KEY} "}, 200, None),
        ({"x-localwhisper-key": KEY, "authorization": f"Bearer {KEY}"}, 200, None),
        ({"authorization": "Bearer sk-mine"}, 401, None),
        ({"x-localwhisper-key": "other", "authorization": f"Bearer {KEY}"}, 401, None),
    ],
)
async def test_two_keys(headers: dict[str, str], status: int, authorization: str | None) -> None:
    """This server's is checked and stays here; the other is passed on."""
    app, asked = _before(keys=(KEY,))
    assert (await call(app, "GET", "/v1/files", headers)).status == status
    assert [request.headers.get("authorization") for request in asked] == ([authorization] if status == 200 else [])
    assert all(KEY not in str(request.headers.raw) for request in asked)


# When there is no answer


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (httpx2.ConnectError("refused"), 502, "upstream_failed"),
        (httpx2.ConnectTimeout("slow"), 502, "upstream_failed"),
        (httpx2.ReadError("reset"), 502, "upstream_failed"),
        (httpx2.ReadTimeout("slow"), 504, "upstream_failed"),
        (httpx2.PoolTimeout("full"), 503, "server_is_overloaded"),
        (RuntimeError("a bug"), 500, None),
        (httpx2.Response(600, content=b"x"), 502, "upstream_failed"),  # uvicorn cannot send it
    ],
)
async def test_an_upstream_that_fails(failure: httpx2.Response | Exception, status: int, code: str | None) -> None:
    """Each failure has its status in the envelope, and its own words stay in the log."""
    app, _ = _before(failure)
    answer = await call(app, "POST", "/v1/embeddings", {"content-length": "1"}, b"x")
    assert (answer.status, answer.error["code"]) == (status, code)
    assert str(failure) not in answer.error["message"]


async def test_the_log_says_that_an_upstream_broke_off(caplog: pytest.LogCaptureFixture) -> None:
    """Its 200 was passed back before."""

    async def cut() -> AsyncIterator[bytes]:
        yield b"half"
        raise httpx2.ReadError("reset")

    class Cutting(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, content=cut())

    upstream = Upstream("https://api.example/v1", transport=Cutting())
    app = make_app(upstream=upstream)
    with caplog.at_level("INFO"):
        answer = await call(app, "GET", "/v1/files")
    assert (answer.status, answer.whole) == (200, False)
    assert caplog.messages[-1] == "GET /v1/files 200 0.000s, broke off: 502, upstream_failed"


class Reading(httpx2.AsyncBaseTransport):
    """Reads the body before it answers."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        async for _ in request.stream:
            pass
        return httpx2.Response(200)


async def test_a_body_over_the_limit_is_refused_here() -> None:
    """The limit holds for what is passed on."""
    upstream = Upstream("https://api.example/v1", transport=Reading())
    app = make_app(limits=Limits(10), upstream=upstream)
    chunked = {"transfer-encoding": "chunked"}
    assert (await call(app, "POST", "/v1/embeddings", chunked, [b"x" * 6] * 2)).status == 413


async def test_a_caller_who_leaves_in_the_middle_of_the_body() -> None:
    """The log has a 499."""
    upstream = Upstream("https://api.example/v1", transport=Reading())
    app = make_app(upstream=upstream)
    answer = await call(app, "POST", "/v1/embeddings", {"content-length": "9"}, [b"x"], unfinished=True)
    assert answer.status == 499
