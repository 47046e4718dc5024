from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_server.api import keys, routes
from localwhisper_server.api.access_control import Rules, check_origin
from localwhisper_server.api.limits import PAUSE_SECONDS, Floor, limited
from localwhisper_server.api.network import parse_network
from localwhisper_server.errors import ServerError, TooLarge, TooSlow
from tests.server.driving import SPOKEN, WHOLE, Answer, FakeBackend, call, multipart

if TYPE_CHECKING:
    from pathlib import Path

    from localwhisper_server.api.asgi import App

pytestmark = pytest.mark.anyio

KEYS = ("lw-first-0123456789", "lw-second-0123456789")
PAGE = "https://app.example.org"


def from_(app: App, peer: str | None) -> App:
    """Return the app as called from an address."""

    async def called(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "client": peer and (peer, 40000)}, receive, send)

    return called


def make(backend: FakeBackend | None = None, *, peer: str | None = "127.0.0.1", **rules: Any) -> App:
    """Return the app under these rules, called from `peer`."""
    app = routes.create_app(backend or FakeBackend(), rules=Rules(**rules), clock=lambda: 0.0)
    return from_(app, peer)


# The matrix: each row is a reason of its own, and the first that holds is the answer.

PEERS = {
    "127.0.0.1": True,
    "::1": True,
    "::ffff:127.0.0.1": True,
    "192.168.1.20": True,
    "::ffff:192.168.1.20": True,
    "169.254.3.4": True,
    "fe80::1%eth0": True,
    "fd00::20": True,
    "8.8.8.8": False,
    "::ffff:8.8.8.8": False,
    "2001:4860:4860::8888": False,
    None: False,
}
HOSTS = {None: True, "192.168.1.2:5000": True, "[fd00::2]:5000": True, "pc.lan:5000": True, "evil.example:5000": False}
ORIGINS = (None, "the same", PAGE, "https://evil.example", "null")
CREDENTIALS = {
    "right": ({"authorization": f"Bearer {KEYS[1]}"}, 200),
    "by its own name": ({"x-localwhisper-key": KEYS[0], "authorization": "Bearer sk-upstream"}, 200),
    "none": ({}, 401),
    "wrong": ({"authorization": "Bearer lw-third-0123456789"}, 401),
    "wrong by its own name": ({"x-localwhisper-key": "no", "authorization": f"Bearer {KEYS[0]}"}, 401),
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("page", ORIGINS)
async def test_every_cell_of_the_matrix(peer: str | None, host: str | None, page: str | None) -> None:
    """Address, then name, then key; all have to hold, and whoever is refused learns the remedy.

    With a key set, any page may call: none but the user's own knows it, so none can forge a request.
    """
    app = make(peer=peer, keys=KEYS, origins=(PAGE,))
    origin = f"http://{host or 'pc'}" if page == "the same" else page
    if page == "the same" and host is None:
        origin = None  # there is nothing to be the same as
    headers = {name: value for name, value in (("host", host), ("origin", origin)) if value is not None}
    for given_headers, status in CREDENTIALS.values():
        answer = await call(app, "GET", "/v1/models", headers | given_headers)
        if not PEERS[peer]:
            expected, remedy = (403, "address_not_allowed"), "--allow-from"
        elif not HOSTS[host]:
            expected, remedy = (403, "host_not_allowed"), "--allow-host"
        else:
            expected, remedy = (status, None), "--api-key"
        assert answer.status == expected[0]
        if answer.status == 403:
            assert answer.error["code"] == expected[1]
            assert answer.error["type"] == "request_forbidden"
        if answer.status != 200:
            assert remedy in answer.error["message"]
        # A page may read what it gets, a refusal of its key as well; no other refusal.
        readable = answer.headers.get("access-control-allow-origin")
        assert readable == (origin if answer.status != 403 else None)


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
async def test_health_needs_no_key_but_the_rest(path: str) -> None:
    """A breaker asks it; a stranger has no business there, either."""
    assert (await call(make(keys=KEYS), "GET", path)).status == 200
    assert (await call(make(keys=KEYS, peer="8.8.8.8"), "GET", path)).status == 403
    assert (await call(make(keys=KEYS), "GET", path, {"host": "evil.example"})).status == 403


async def test_without_keys_any_or_none_will_do() -> None:
    """The SDK always sends one."""
    for headers in ({}, {"authorization": "Bearer sk-any"}, {"x-localwhisper-key": "any"}):
        assert (await call(make(), "GET", "/v1/models", headers)).status == 200


async def test_allow_from_replaces_the_lan_but_for_this_machine() -> None:
    """One range instead of all private ones."""
    rules: dict[str, Any] = {"allow_from": (parse_network("203.0.113.0/24"),)}
    for peer, status in (("203.0.113.9", 200), ("::ffff:203.0.113.9", 200), ("192.168.1.5", 403), ("::1", 200)):
        assert (await call(make(peer=peer, **rules), "GET", "/v1/models")).status == status


@pytest.mark.parametrize(
    ("peer", "forwarded", "status"),
    [
        ("127.0.0.1", "8.8.8.8", 403),
        ("127.0.0.1", "192.168.1.5", 200),
        ("127.0.0.1", "192.168.1.5, 8.8.8.8", 403),
        ("127.0.0.1", "rubbish", 403),
        ("192.168.1.5", "8.8.8.8", 200),
        ("8.8.8.8", "192.168.1.5", 403),
    ],
)
async def test_forwarded_for_is_believed_from_trusted_proxies_alone(peer: str, forwarded: str, status: int) -> None:
    """Anybody can write the header."""
    app = make(peer=peer, trusted_proxies=(parse_network("127.0.0.0/8"),))
    assert (await call(app, "GET", "/v1/models", {"x-forwarded-for": forwarded})).status == status


async def test_a_second_host_is_looked_at_too() -> None:
    """Which of two a server goes by is nobody's guess."""

    async def doubled(scope: Any, receive: Any, send: Any) -> None:
        hosts = [(b"host", b"pc"), (b"host", b"evil.example")]
        await make()({**scope, "headers": hosts}, receive, send)

    assert (await call(doubled, "GET", "/v1/models")).status == 403


async def test_a_form_posted_by_a_page_never_reaches_the_model() -> None:
    """Browsers send such forms without asking, and cannot leave out where from."""
    backend = FakeBackend()
    headers, body = multipart()
    answer = await call(
        make(backend), "POST", "/v1/audio/transcriptions", headers | {"origin": "https://evil.example"}, body
    )
    assert answer.status == 403
    assert not backend.uploads


async def test_preflight_of_a_listed_page() -> None:
    """It is asked without a key, and told what the SDKs send; also for a public page calling a private address."""
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, x-stainless-os",
        "access-control-request-private-network": "true",
    }
    answer = await call(make(origins=(PAGE,), keys=KEYS), "OPTIONS", "/v1/audio/transcriptions", asked)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    assert answer.headers["access-control-allow-private-network"] == "true"
    asked["origin"] = "https://evil.example"
    answer = await call(make(origins=(PAGE,)), "OPTIONS", "/v1/audio/transcriptions", asked)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


async def test_a_listed_page_can_read_a_transcript_and_its_id() -> None:
    """The headers that matter are exposed; caches are told that the answer depends on the page."""
    headers, body = multipart()
    answer = await call(make(origins=(PAGE,)), "POST", "/v1/audio/transcriptions", headers | {"origin": PAGE}, body)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "origin" in answer.headers["vary"].lower()


async def test_any_page_can_be_let_in() -> None:
    """With a star, for who knows what that means."""
    answer = await call(make(origins=("*",)), "GET", "/v1/models", {"origin": "https://any.example"})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")


FOREIGN = ["https://evil.example", "null", "app://obsidian.md", "tauri://localhost", "chrome-extension://abc"]


@pytest.mark.parametrize("page", FOREIGN)
@pytest.mark.parametrize("way", ["authorization", "x-localwhisper-key"])
async def test_any_page_with_the_key_may_call(page: str, way: str) -> None:
    """Browsers, Electron, Tauri, web extensions: first the preflight, without a key, then the request with it."""
    app = make(keys=KEYS)
    asked = {"origin": page, "access-control-request-method": "POST", "access-control-request-headers": way}
    preflight = await call(app, "OPTIONS", "/v1/audio/transcriptions", asked)
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, page)
    assert way in preflight.headers["access-control-allow-headers"]
    key = {way: f"Bearer {KEYS[0]}" if way == "authorization" else KEYS[0]}
    headers, body = multipart()
    for method, path, sent in (("POST", "/v1/audio/transcriptions", body), ("GET", "/v1/health", b"")):
        answer = await call(app, method, path, headers | key | {"origin": page}, sent)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, page)


async def test_a_page_with_another_key_can_read_that_it_is_wrong() -> None:
    """Rather than "Network Error"; the model is not reached."""
    backend = FakeBackend()
    headers, body = multipart()
    for key in ({}, {"authorization": "Bearer sk-other"}):
        asked = headers | key | {"origin": FOREIGN[0]}
        answer = await call(make(backend, keys=KEYS), "POST", "/v1/audio/transcriptions", asked, body)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, FOREIGN[0])
    assert not backend.uploads


@pytest.mark.parametrize("path", ["/health", "/v1/ready"])
async def test_a_page_without_the_key_cannot_ask_how_the_server_is(path: str) -> None:
    """These need no key, so the page is what decides."""
    for key in ({}, {"authorization": "Bearer sk-other"}):
        answer = await call(make(keys=KEYS), "GET", path, key | {"origin": FOREIGN[0]})
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize("page", FOREIGN)
async def test_without_keys_no_foreign_page_may_call(page: str) -> None:
    """Its preflight neither."""
    for method in ("GET", "OPTIONS"):
        asked = {"origin": page, "access-control-request-method": "GET", "authorization": "Bearer any"}
        answer = await call(make(), method, "/v1/models", asked)
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("peer", "headers", "line"),
    [
        ("8.8.8.8", {}, '403 0.000s, address_not_allowed, "8.8.8.8" (--allow-from lets it in)'),
        ("::1", {"host": "pc.example"}, '403 0.000s, host_not_allowed, "pc.example" (--allow-host lets it in)'),
        ("::1", {"origin": "app://x"}, '403 0.000s, origin_not_allowed, "app://x" (--cors-origin lets it in)'),
        ("::1", {"origin": 'a"\n' + "x" * 999}, '"a\\"\\n' + "x" * 97 + '" (--cors-origin lets it in)'),
    ],
    ids=["address", "name", "page", "a page that would write lines"],
)
async def test_the_log_says_who_was_refused_and_what_lets_them_in(
    peer: str, headers: dict[str, str], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The user sees "Network Error" alone, so the log has the remedy."""
    with caplog.at_level("INFO"):
        assert (await call(make(peer=peer), "GET", "/v1/models", headers)).status == 403
    assert caplog.messages[-1].endswith(line)


@pytest.mark.parametrize("host", ["localhost:5000", "whisper.localhost", "a.b.localhost:5000"])
async def test_names_below_localhost_are_this_machine(host: str) -> None:
    """RFC 6761: no public name server can point them anywhere."""
    assert (await call(make(), "GET", "/v1/models", {"host": host})).status == 200
    assert (await call(make(), "GET", "/v1/models", {"host": f"{host.partition(':')[0]}.example"})).status == 403


async def test_too_many_headers() -> None:
    """More than any client sends."""
    answer = await call(make(), "GET", "/v1/models", {f"x-{number}": "" for number in range(101)})
    assert (answer.status, answer.error["code"]) == (431, "too_many_headers")


async def test_websockets_are_closed_unheard() -> None:
    """Nothing here speaks them, and the guard would not see what they say."""
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    await make()({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_messages_show_only_so_much_of_a_header() -> None:
    """And nothing that could be taken for more than a name."""
    answer = await call(make(), "GET", "/v1/models", {"host": "é" + "x" * 5000})
    assert answer.status == 403
    assert len(answer.error["message"]) < 400


# Keys


def test_a_file_of_keys(tmp_path: Path) -> None:
    """One a line; comments and empty lines are none."""
    file = tmp_path / "keys"
    file.write_text("# the bot\nlw-one\n\n  lw-two  \r\n")
    assert keys.read_keys(file) == ("lw-one", "lw-two")


@pytest.mark.parametrize("content", [b"", b"# nobody\n\n", b"\xff\xfe"])
def test_a_file_without_keys_opens_nothing(tmp_path: Path, content: bytes) -> None:
    """A server that was to be locked does not start unlocked."""
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="keys"):
        keys.read_keys(file)


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """However early one fits, so that the time taken says nothing."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    assert keys.is_one_of(KEYS[0].encode(), KEYS)
    assert compared == [key.encode() for key in KEYS]


def test_rules_do_not_show_their_keys() -> None:
    """Not even in a traceback."""
    assert KEYS[0] not in repr(Rules(keys=KEYS))


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"host", b"origin", b"x-forwarded-for", b"authorization", b"x-localwhisper-key", b"x"]),
        st.binary(max_size=60),
    )
)


@given(HEADERS, st.none() | st.text())
def test_no_header_breaks_the_guard(headers: list[tuple[bytes, bytes]], peer: str | None) -> None:
    """Any bytes at all are let in or refused in words of ours."""
    rules = Rules(keys=KEYS, trusted_proxies=(parse_network("127.0.0.1"),))
    client = ("127.0.0.1", 1) if peer is None else (peer, 1)
    scope = {"headers": headers, "client": client, "method": "GET", "path": "/health"}
    for check in (lambda: check_origin(rules, scope), lambda: keys.check_key(headers, rules.keys)):
        try:
            check()
        except ServerError as refusal:
            assert refusal.body()["error"]["message"]  # noqa: PT017 - either outcome is right


# The body: how much and how fast


@pytest.mark.parametrize(
    ("floor", "credit", "read", "waited", "left"),
    [
        (Floor(100, 10), 10, 0, 4, 6),
        (Floor(100, 10), 10, 0, 10, 0),
        (Floor(100, 10), 10, 500, 10, 5),
        (Floor(100, 10), 10, 500, 16, -1),
        (Floor(100, 10), 10, 10**9, 0, PAUSE_SECONDS),
        (Floor(100, 90), 80, 10**9, 0, 90),
        (Floor(0, 0), 1, 0, 1e9, PAUSE_SECONDS),
    ],
)
def test_credit(floor: Floor, credit: float, read: int, waited: float, left: float) -> None:
    """A second more for each second's worth that came, up to a minute; without a rate, each pause may be a minute."""
    assert floor.credit(credit, read, waited) == left


class Sender:
    """Sends a body, each part after so many seconds of the test's clock."""

    def __init__(self, *parts: tuple[float, int]) -> None:
        self.now = 0.0
        self._parts = list(parts)

    def clock(self) -> float:
        return self.now

    async def receive(self) -> dict[str, Any]:
        if not self._parts:
            return {"type": "http.disconnect"}
        pause, size = self._parts.pop(0)
        self.now += pause
        return {"type": "http.request", "body": bytes(size), "more_body": bool(self._parts)}


async def _upload(sender: Sender, *, limit: int = 10**9, busy: float = 0.0) -> int:
    receive = limited(sender.receive, limit=limit, floor=Floor(1000, 10), clock=sender.clock)
    read = 0
    while True:
        message = await receive()
        read += len(message["body"])
        sender.now += busy
        if not message["more_body"]:
            return read


@pytest.mark.parametrize(
    "parts",
    [
        [(0, 10)],
        [(9, 1), (0, 1)],
        [(1, 1000)] * 60,
        [(5, 100_000), (PAUSE_SECONDS - 1, 1), (0.5, 1)],
        [(11, 1)],  # late, but whole
    ],
)
async def test_an_upload_at_a_walking_pace_is_taken(parts: list[tuple[float, int]]) -> None:
    """A burst pays for a pause."""
    assert await _upload(Sender(*parts)) == sum(size for _, size in parts)


@pytest.mark.parametrize(
    "parts",
    [
        [(11, 1), (0, 1)],
        [(1, 1)] * 12,
        [(1, 900)] * 150,
        [(1, 199_000_000), (PAUSE_SECONDS + 1, 1), (0, 1)],
        [(1, 199_000_000), *[(PAUSE_SECONDS / 2, 1)] * 4],
    ],
    ids=["late", "drops", "below the rate", "a fast start and silence", "a fast start and drops"],
)
async def test_a_trickle_is_cut_off(parts: list[tuple[float, int]]) -> None:
    """A byte now and then does not hold a place."""
    with pytest.raises(TooSlow):
        await _upload(Sender(*parts))


async def test_time_the_server_takes_is_not_the_callers() -> None:
    """A disk that is slow here is no fault of theirs."""
    assert await _upload(Sender(*[(1, 1000)] * 60), busy=100.0) == 60_000


async def test_silence_is_cut_off_without_a_byte() -> None:
    """There need be no message for the time to run out."""
    receive = limited(asyncio.Event().wait, limit=1, floor=Floor(1000, 0.01), clock=lambda: 0.0)  # type: ignore[arg-type]
    with pytest.raises(TooSlow):
        await receive()


async def test_after_the_body_there_is_no_hurry() -> None:
    """A caller waits for the transcript in silence."""
    sender = Sender((0, 1))
    receive = limited(sender.receive, limit=1, floor=Floor(1000, 1), clock=sender.clock)
    await receive()
    sender.now += 1e6
    assert (await receive())["type"] == "http.disconnect"


async def test_a_body_over_the_limit() -> None:
    """Counted as it comes."""
    with pytest.raises(TooLarge):
        await _upload(Sender((0, 600), (0, 600), (0, 1)), limit=1000)


async def test_a_slow_upload_is_answered_as_such() -> None:
    """408 in OpenAI's envelope; SDKs try that again."""
    ticking = itertools.count(step=10)
    app = routes.create_app(FakeBackend(), rules=Rules(floor=Floor(1000, 5)), clock=lambda: float(next(ticking)))
    headers, body = multipart()
    answer = await call(app, "POST", "/v1/audio/transcriptions", headers, [body[:10], body[10:20], body[20:]])
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")


# One address's share


async def _at_once(
    backend: FakeBackend, app: App, peers: list[str], release: asyncio.Event, path: str = "/v1/audio/transcriptions"
) -> list[Answer]:
    headers, body = multipart()

    async def one(peer: str) -> Answer:
        return await call(from_(app, peer), "POST", path, headers, body)

    tasks = [asyncio.create_task(one(peer)) for peer in peers]
    async with asyncio.timeout(10):
        # Until each is at the model or refused.
        while len(backend.uploads) + sum(task.done() for task in tasks) < len(tasks):  # noqa: ASYNC110 - turns of the loop
            await asyncio.sleep(0)
        release.set()
        return [await task for task in tasks]


async def test_one_address_has_only_its_share() -> None:
    """More is a 429 with Retry-After; others are not touched, and afterwards there is room again."""
    release = asyncio.Event()
    backend = FakeBackend([release, *SPOKEN, WHOLE], queue_seconds=7.2)
    app = routes.create_app(backend, rules=Rules(per_address=2), clock=lambda: 0.0)
    peers = ["192.168.1.5"] * 3 + ["192.168.1.6", "fd00::1", "fd00::2", "fd00::3"]
    answers = await _at_once(backend, app, peers, release)
    assert [answer.status for answer in answers] == [200, 200, 429, 200, 200, 200, 429]
    assert answers[2].error["code"] == "rate_limit_exceeded"
    assert answers[2].headers["retry-after"] == "8"
    again = await _at_once(backend, app, ["192.168.1.5"] * 2, release)
    assert [answer.status for answer in again] == [200, 200]


@pytest.mark.parametrize("path", ["/audio/translations", "/v1/audio/transcriptions\n", "/v1/audio/translations\n"])
async def test_no_spelling_of_a_path_passes_by_the_share(path: str) -> None:
    """Whatever reaches the model is counted: `%0A` at the end of a path leads to the same route."""
    release = asyncio.Event()
    backend = FakeBackend([release, *SPOKEN, WHOLE])
    app = routes.create_app(backend, rules=Rules(per_address=1), clock=lambda: 0.0)
    answers = await _at_once(backend, app, ["192.168.1.5"] * 2, release, path)
    assert sorted(answer.status for answer in answers) == [200, 429]


@pytest.mark.parametrize(("peer", "share"), [("127.0.0.1", 1), ("::1", 1), ("192.168.1.5", 0)])
async def test_who_has_no_share(peer: str, share: int) -> None:
    """This machine's programs have one address together; and the limit can be none."""
    release = asyncio.Event()
    backend = FakeBackend([release, *SPOKEN, WHOLE])
    app = routes.create_app(backend, rules=replace(Rules(), per_address=share), clock=lambda: 0.0)
    answers = await _at_once(backend, app, [peer] * 5, release)
    assert {answer.status for answer in answers} == {200}
