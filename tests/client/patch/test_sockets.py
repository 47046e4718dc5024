"""WebSockets that voice frameworks open under `localwhisper run`, with the libraries that they use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.client.leaving import LEAVES, run

pytest.importorskip("websockets")
pytest.importorskip("aiohttp")

from tests.client.realtime_server import RealtimeServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Each opens a session and returns the type of its first event.
LIBRARIES = {
    "websockets.asyncio.client": """
from websockets.asyncio.client import connect
async def first(url):
    options = {"additional_headers": HEADERS, "subprotocols": PROTOCOLS}
    async with connect(url, **options) as opened:
        seen = {json.loads(await opened.recv())["type"]}
    opened = await connect(url, **options)
    seen.add(json.loads(await opened.recv())["type"])
    await opened.close()
    async for opened in connect(url, **options):
        seen.add(json.loads(await opened.recv())["type"])
        break
    return " ".join(seen)
""",
    "websockets.sync.client": """
from websockets.sync import client
async def first(url):
    with client.connect(url, additional_headers=list(HEADERS.items()), subprotocols=PROTOCOLS) as opened:
        return json.loads(opened.recv())["type"]
""",
    "aiohttp": """
import aiohttp
async def first(url):
    cookies = {"session": "the-clouds-cookie"}
    async with (
        aiohttp.ClientSession(headers=HEADERS, cookies=cookies, trust_env=True) as session,
        session.ws_connect(url, headers=HEADERS, protocols=PROTOCOLS) as opened,
    ):
        return (await opened.receive_json())["type"]
""",
}
PROGRAM = """
HEADERS = {"Authorization": "Bearer the-clouds-key", "OpenAI-Organization": "the-clouds", "OpenAI-Beta": "realtime=v1"}
PROTOCOLS = ["realtime", "openai-insecure-api-key.the-clouds-key"]
async def main():
    for url in URLS:
        try:
            print(await first(url))
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
"""
TRANSCRIPTIONS = [
    "wss://api.openai.com/v1/realtime?intent=transcription&key=the-clouds",
    "wss://api.openai.com/v1/realtime?model=gpt-4o-transcribe",
    "wss://mine.openai.azure.com/openai/realtime?deployment=d&intent=transcription",
    "wss://203.0.113.9/realtime?intent=transcription",
]
OTHERS = [
    "wss://api.openai.com/v1/realtime?model=gpt-realtime",
    "wss://api.openai.com/v1/realtime/translations",
    "wss://api.openai.com/v1/live/sessions/s/attach",
    "wss://mine.openai.azure.com/openai/realtime?deployment=d",
    "wss://203.0.113.9/realtime",
]
CREATED = "session.created"


@pytest.fixture
def lan() -> Iterator[RealtimeServer]:
    """A local server."""
    with serving() as server:
        yield server


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    """Each library that opens WebSockets."""
    name: str = request.param
    return name


def program(first: str, second: str, urls: list[str]) -> str:
    """Return a program that opens these URLs, and begins with two imports."""
    return f"import asyncio, json\n{first}\n{second}\n{PROGRAM.replace('URLS', repr(urls))}\nasyncio.run(main())\n"


def opened(library: str, urls: list[str], lan: RealtimeServer, tmp_path: Path, **environ: str) -> list[str]:
    """Return what a program prints that opens these URLs. Under `wait` it loads the library before the SDK."""
    imports = ["import openai", LIBRARIES[library]]
    if environ.get("LOCALWHISPER_POLICY") == "wait":
        imports.reverse()
    settings = {"LOCALWHISPER_BASE_URL": lan.url, "LOCALWHISPER_API_KEY": "the-servers-key", **environ}
    done = run(program(*imports, urls), tmp_path, **settings)
    assert LEAVES not in done.stderr, done.stderr
    assert "Unclosed" not in done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("library", "policy"),
    [*((library, policy) for library in LIBRARIES for policy in ("local_only", "wait")), ("aiohttp", "cloud")],
)
def test_transcriptions_go_to_the_local_server(policy: str, library: str, lan: RealtimeServer, tmp_path: Path) -> None:
    """With its key, with nothing of the cloud's, and past a proxy; whether the library or the SDK is loaded first."""
    proxy = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    printed = opened(library, TRANSCRIPTIONS, lan, tmp_path, LOCALWHISPER_POLICY=policy, **proxy)
    assert printed == [CREATED] * len(TRANSCRIPTIONS)
    assert len(lan.opened) == len(TRANSCRIPTIONS) * (3 if "asyncio" in library else 1)
    for each in lan.opened:
        assert each.path in ("/v1/realtime?intent=transcription", "/v1/realtime?model=gpt-4o-transcribe")
        assert each.headers["authorization"] == "Bearer the-servers-key"
        assert each.headers["openai-beta"] == "realtime=v1"
        assert each.headers["sec-websocket-protocol"] == "realtime"
        assert "the-clouds" not in str(each.headers)


def test_other_sessions_are_refused(library: str, lan: RealtimeServer, tmp_path: Path) -> None:
    """Before a look-up; a WebSocket that is no session is opened as before, and so is one on the LAN."""
    lan_url = lan.url.replace("http", "ws")
    urls = [f"{lan_url}/realtime?intent=transcription", f"{lan_url}/realtime?model=mine", f"{lan_url}/other"]
    printed = opened(library, [*OTHERS, *urls], lan, tmp_path)
    assert [line.partition(":")[0] for line in printed] == ["CloudNotAllowed"] * len(OTHERS) + [CREATED] * len(urls)
    for each in lan.opened:
        assert each.headers["authorization"] == "Bearer the-clouds-key"  # the program's own, as it gave it


def test_a_transcription_without_a_server(lan: RealtimeServer, tmp_path: Path) -> None:
    """It is refused in the client's words."""
    off = "http://127.0.0.1:9/v1"
    (printed,) = opened("aiohttp", TRANSCRIPTIONS[:1], lan, tmp_path, LOCALWHISPER_BASE_URL=off)
    assert printed.startswith(f"LocalServerUnavailable: Tried: {off} (ConnectError")


def test_a_server_that_refuses_a_session(library: str, lan: RealtimeServer, tmp_path: Path) -> None:
    """The program gets the SDK's error for the server's status."""
    lan.refuses = 404
    (printed,) = opened(library, TRANSCRIPTIONS[:1], lan, tmp_path)
    assert printed.startswith(f"NotFoundError: {lan.url} refused to open a realtime session (status 404).")


def test_sessions_go_to_the_cloud_if_they_may(library: str, lan: RealtimeServer, tmp_path: Path) -> None:
    """Under `cloud`, as the program opens them: a conversation, and a transcription that no local server takes."""
    lan.ready = [503]
    urls = ["wss://a.openai.com/v1/realtime?model=gpt-realtime", "wss://b.openai.com/v1/realtime?intent=transcription"]
    text = program("import openai", LIBRARIES[library], urls)
    done = run(text, tmp_path, LOCALWHISPER_BASE_URL=lan.url, LOCALWHISPER_POLICY="cloud")
    for name in "ab":
        assert f"{LEAVES} {name}.openai.com" in done.stderr, done.stdout + done.stderr
    assert lan.asked
    assert not lan.opened
