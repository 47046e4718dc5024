from __future__ import annotations

import hmac
import itertools
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import WebSocket  # noqa: TC002 - FastAPI reads the annotation
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_client.shared.lan_ranges import parse_network
from localwhisper_server.api.access_control import Rules, caller, check_key, check_origin, may_call, names_this_server
from localwhisper_server.api.middleware import claim_share
from localwhisper_server.api.routes import create_app
from localwhisper_server.errors import ServerError
from localwhisper_server.settings import Settings
from tests.server.driving import FakeTranscriber, call, make_app, multipart

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio

KEYS = ("lw-first-0123456789", "lw-second-0123456789")
PAGE = "https://app.example.org"


def make(transcriber: FakeTranscriber | None = None, *, peer: str | None = "127.0.0.1", **rules: Any) -> ASGIApp:
    """Return the app under these rules, called from `peer`."""
    app = make_app(transcriber, rules=Rules(**rules))

    async def called(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "client": peer and (peer, 40000)}, receive, send)

    return called


# Each reason to refuse, alone and with the others; the first that holds is the answer.

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
    "right in capitals": ({"authorization": f"  BEARER {KEYS[1]}"}, 200),
    "by its own name": ({"x-localwhisper-key": KEYS[0], "authorization": "Bearer sk-upstream"}, 200),
    "none": ({}, 401),
    "wrong": ({"authorization": "Bearer lw-third-0123456789"}, 401),
    "wrong by its own name": ({"x-localwhisper-key": "no", "authorization": f"Bearer {KEYS[0]}"}, 401),
}


@pytest.mark.parametrize("peer", PEERS)
async def test_every_combination(peer: str | None) -> None:
    """Address, then name, then key are checked, and each refusal names the option that would allow the request.

    With a key set, any page may call: a page that forges requests does not know the key.
    """
    app = make(peer=peer, keys=KEYS, origins=(PAGE,))
    for host, page, (given_headers, status) in itertools.product(HOSTS, ORIGINS, CREDENTIALS.values()):
        origin = f"http://{host or 'pc'}" if page == "the same" else page
        if page == "the same" and host is None:
            origin = None  # there is no name to be the same as
        headers = {name: value for name, value in (("host", host), ("origin", origin)) if value is not None}
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
        # A page can read its answer, and that its key is refused, but no other refusal.
        readable = answer.headers.get("access-control-allow-origin")
        assert readable == (origin if answer.status != 403 else None)


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
async def test_health_needs_no_key_but_all_else(path: str) -> None:
    """A client's breaker asks for it without a key; address and name are checked as ever."""
    assert (await call(make(keys=KEYS), "GET", path)).status == 200
    assert (await call(make(keys=KEYS, peer="8.8.8.8"), "GET", path)).status == 403
    assert (await call(make(keys=KEYS), "GET", path, {"host": "evil.example"})).status == 403


async def test_without_keys_any_key_or_none_is_accepted() -> None:
    """The SDK always sends one."""
    for headers in ({}, {"authorization": "Bearer sk-any"}, {"x-localwhisper-key": "any"}):
        assert (await call(make(), "GET", "/v1/models", headers)).status == 200


async def test_allow_from_replaces_the_lan_but_for_this_machine() -> None:
    """It names one range instead of all private ones; loopback stays allowed."""
    rules: dict[str, Any] = {"allow_from": (parse_network("203.0.113.0/24"),)}
    for peer, status in (("203.0.113.9", 200), ("::ffff:203.0.113.9", 200), ("192.168.1.5", 403), ("::1", 200)):
        assert (await call(make(peer=peer, **rules), "GET", "/v1/models")).status == status


@pytest.mark.parametrize(
    ("peer", "forwarded", "status"),
    [("127.0.0.1", "192.168.1.5, 8.8.8.8", 403), ("192.168.1.5", "8.8.8.8", 200), ("8.8.8.8", "192.168.1.5", 403)],
)
async def test_forwarded_for_is_believed_from_trusted_proxies_alone(peer: str, forwarded: str, status: int) -> None:
    """Any other caller may have made the header up."""
    app = make(peer=peer, trusted_proxies=(parse_network("127.0.0.0/8"),))
    assert (await call(app, "GET", "/v1/models", {"x-forwarded-for": forwarded})).status == status


async def test_a_second_host_is_checked_too() -> None:
    """Of two `Host` headers, none may be a foreign name."""

    async def doubled(scope: Any, receive: Any, send: Any) -> None:
        hosts = [(b"host", b"pc"), (b"host", b"evil.example")]
        await make()({**scope, "headers": hosts}, receive, send)

    assert (await call(doubled, "GET", "/v1/models")).status == 403


async def test_preflight_of_a_listed_page() -> None:
    """It has no key. The answer allows the SDKs' headers, and a public page's call to a private address."""
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


async def test_a_star_allows_any_page() -> None:
    """`origins=("*",)`."""
    answer = await call(make(origins=("*",)), "GET", "/v1/models", {"origin": "https://any.example"})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")


FOREIGN = ["https://evil.example", "null", "app://obsidian.md", "tauri://localhost", "chrome-extension://abc"]


@pytest.mark.parametrize("page", FOREIGN)
@pytest.mark.parametrize("way", ["authorization", "x-localwhisper-key"])
async def test_any_page_with_the_key_may_call(page: str, way: str) -> None:
    """As browsers, Electron, Tauri and web extensions do: a preflight without a key, then the request with it."""
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
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize("path", ["/health", "/v1/ready"])
async def test_a_page_without_the_key_cannot_ask_for_health(path: str) -> None:
    """These paths need no key, so the origin decides."""
    for key in ({}, {"authorization": "Bearer sk-other"}):
        answer = await call(make(keys=KEYS), "GET", path, key | {"origin": FOREIGN[0]})
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize("page", FOREIGN)
async def test_without_keys_no_foreign_page_may_call(page: str) -> None:
    """Neither may its preflight."""
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
async def test_the_log_says_what_was_refused_and_which_option_allows_it(
    peer: str, headers: dict[str, str], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A page shows its user "Network Error" alone, so the log has the option."""
    with caplog.at_level("INFO"):
        assert (await call(make(peer=peer), "GET", "/v1/models", headers)).status == 403
    assert caplog.messages[-1].endswith(line)


async def test_too_many_headers() -> None:
    """431 above 100, more than any client sends."""
    answer = await call(make(), "GET", "/v1/models", {f"x-{number}": "" for number in range(101)})
    assert (answer.status, answer.error["code"]) == (431, "too_many_headers")


@pytest.mark.parametrize(
    ("peer", "key", "status", "code"),
    [
        ("127.0.0.1", KEYS[0], 101, None),
        ("127.0.0.1", "other", 401, "invalid_api_key"),
        ("8.8.8.8", KEYS[0], 403, "address_not_allowed"),
    ],
)
async def test_a_websocket_passes_the_same_checks(
    peer: str, key: str, status: int, code: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal is an answer of HTTP, and each has its id and its log line."""

    async def route(websocket: WebSocket) -> None:
        claim_share(websocket.scope)
        await websocket.accept()

    app, sent = create_app(FakeTranscriber(), rules=Rules(keys=KEYS), clock=lambda: 0.0), []
    app.add_api_websocket_route("/v1/live", route)
    scope = {
        "type": "websocket",
        "path": "/v1//live",
        "raw_path": b"/v1//live",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {key}".encode())],
        "client": (peer, 1),
        "extensions": {"websocket.http.response": {}},
    }

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    with caplog.at_level("INFO"):
        await app(scope, receive, send)
    assert sent[0]["type"] == ("websocket.accept" if code is None else "websocket.http.response.start")
    assert sent[0].get("status", 101) == status
    assert b"x-request-id" in dict(sent[0]["headers"])
    assert caplog.messages[-1].startswith(f"GET /v1/live {status} 0.000s{f', {code}' if code else ''}")


async def test_a_message_shows_the_beginning_of_a_header() -> None:
    """A long header does not make a long message."""
    answer = await call(make(), "GET", "/v1/models", {"host": "é" + "x" * 5000})
    assert answer.status == 403
    assert len(answer.error["message"]) < 400


# Addresses, names and pages, without the app


PROXY = [ip_network("10.0.0.0/24"), ip_network("::1/128")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.168.1.5", [], "192.168.1.5"),
        ("192.168.1.5", ["8.8.8.8"], "192.168.1.5"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["8.8.8.8"], "8.8.8.8"),
        ("::1", ["8.8.8.8"], "8.8.8.8"),
        ("::ffff:10.0.0.1", ["[2001:db8::5]:443"], "2001:db8::5"),
        ("10.0.0.1", ["192.168.1.1, 8.8.8.8"], "8.8.8.8"),
        ("10.0.0.1", ["192.168.1.1", "8.8.8.8"], "8.8.8.8"),
        ("10.0.0.1", ["8.8.8.8, 10.0.0.2"], "8.8.8.8"),
        ("10.0.0.1", ["192.168.1.1, 8.8.8.8, 10.0.0.2,"], "8.8.8.8"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["unknown"], None),
        ("10.0.0.1", ["192.168.1.1, garbage"], None),
        (None, ["192.168.1.1"], None),
        ("testclient", [], None),
    ],
)
def test_the_callers_address(peer: str | None, forwarded: list[str], expected: str | None) -> None:
    """X-Forwarded-For is read from its end, as far as trusted proxies wrote it; an unreadable address is unknown."""
    assert caller(peer, forwarded, PROXY) == (expected and ip_address(expected))


OURS = [
    *("127.0.0.1:5000", "192.168.1.5", "8.8.8.8", "[::1]:5000", "[fe80::1%25eth0]"),
    *("localhost", "LOCALHOST:5000", "localhost.", "a.b.localhost:5000", "pc", "My_PC:5000", "notlocal"),
    *("pc.local", "pc.lan:80", "pc.home", "pc.home.arpa.", "pc.internal"),
    *("pc.example.org", "a.dyn.example.net"),  # allowed
]
NOT_OURS = [
    *("whisper.localhost.example", "dyn.example.net", "evil.example.com", "pc.example.org.evil.com"),
    *("127.0.0.1.nip.io", "evil-local.com", "example.org"),
    *("pc:5000:5000", "[::1", "[evil.com]", "a@evil.com", "pc local", "pc\x00", "naïve", ""),
]


@pytest.mark.parametrize(("ours", "host"), [*((True, host) for host in OURS), *((False, host) for host in NOT_OURS)])
def test_names_of_this_server(host: str, *, ours: bool) -> None:
    """Addresses, single labels, a LAN's suffixes and allowed names, with any port; another name may be rebound."""
    assert names_this_server(host, ("pc.example.org", ".dyn.example.net")) == ours
    assert names_this_server(host, ("*",))


@pytest.mark.parametrize(
    ("host", "may", "pages"),
    [
        ("pc.lan:5000", True, ["http://pc.lan:5000", "http://PC.lan:5000"]),
        ("pc.lan", True, ["http://pc.lan", "http://pc.lan:80", "https://pc.lan"]),
        ("[::1]:5000", True, ["http://[::1]:5000"]),
        ("pc.lan:5000", True, ["https://app.example.org", "HTTPS://app.example.ORG", "app://obsidian.md"]),
        ("pc.lan:5000", False, ["http://pc.lan:3000", "http://other.lan:5000", "http://pc.lan:5000/", "null", ""]),
        ("pc.lan:5000", False, ["http://app.example.org", "https://app.example.org:444", "app://pc.lan:5000"]),
        (None, False, ["null", "http://pc.lan:5000"]),
        ("://", False, ["://"]),
    ],
)
def test_pages_that_may_call(host: str | None, pages: list[str], *, may: bool) -> None:
    """Pages loaded from this server, and those that are listed with their scheme and port."""
    for page in pages:
        assert may_call(page, host, ("https://app.example.org", "app://obsidian.md")) == may, page
        assert may_call(page, host, ("*",))


# Keys


KEY = "lw-0123456789abcdef"


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic abc", KEY])
async def test_no_key(authorization: str | None) -> None:
    """OpenAI's 401 for it."""
    headers, _ = multipart()
    if authorization is not None:
        headers["authorization"] = authorization
    answer = await call(make_app(api_key=KEY), "POST", "/v1/audio/transcriptions", headers, [])
    assert answer.status == 401
    assert answer.headers["content-type"] == "application/json"
    assert answer.error["message"].startswith("You didn't provide an API key.")
    assert (answer.error["type"], answer.error["param"], answer.error["code"]) == ("invalid_request_error", None, None)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("sk-proj-0123456789", "sk-***6789"),
        ("short", "***"),
        ("clé-0123456789abc", "clé***9abc"),
        (KEY + "x", "lw-***defx"),
    ],
)
async def test_a_wrong_key(key: str, shown: str) -> None:
    """As OpenAI sends it: text/plain, with the status in the body; the wrong key is masked, the right one not shown."""
    headers = {"authorization": f"Bearer {key}"}
    answer = await call(make_app(api_key=KEY), "GET", "/v1/models", headers)
    assert answer.status == 401
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.json()["status"] == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.error["message"].startswith(f"Incorrect API key provided: {shown}.")
    assert key not in answer.body.decode() or len(key) < 8
    assert KEY not in answer.body.decode()


@pytest.mark.parametrize("content", [b"", b"# none\n\n", b"\xff\xfe"])
def test_a_file_of_keys(tmp_path: Path, content: bytes) -> None:
    """One key a line, beside comments. A server that should need a key does not start without one."""
    file = tmp_path / "keys"
    file.write_text("# the bot\nlw-one\n\n  lw-two  \r\n")
    assert Settings(api_key_file=file).keys() == ("lw-one", "lw-two")
    file.write_bytes(content)
    with pytest.raises(ValueError, match="keys"):
        Settings(api_key_file=file).keys()


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a comparison takes does not tell which key is right."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    scope = {"path": "/v1/models", "headers": [(b"authorization", f"Bearer {KEYS[0]}".encode())]}
    check_key(Rules(keys=KEYS), scope)
    assert compared == [key.encode() for key in KEYS]


def test_rules_do_not_show_their_keys() -> None:
    """A traceback does not reveal them."""
    assert KEYS[0] not in repr(Rules(keys=KEYS))


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"host", b"origin", b"x-forwarded-for", b"authorization", b"x-localwhisper-key", b"x"]),
        st.binary(max_size=60),
    )
)


@given(HEADERS, st.none() | st.text())
def test_no_header_breaks_access_control(headers: list[tuple[bytes, bytes]], peer: str | None) -> None:
    """Any bytes are accepted or refused with an error of the server's."""
    rules = Rules(keys=KEYS, trusted_proxies=(parse_network("127.0.0.1"),))
    client = ("127.0.0.1", 1) if peer is None else (peer, 1)
    scope = {"headers": headers, "client": client, "method": "GET", "path": "/health"}
    for check in (lambda: check_origin(rules, scope), lambda: check_key(rules, scope)):
        try:
            check()
        except ServerError as refusal:
            assert refusal.body()["error"]["message"]  # noqa: PT017 - either outcome is right
