"""The page's files, and what the server tells it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from localwhisper_server.api.middleware import MOST_REQUESTS, Activity
from localwhisper_server.errors import UnreadableAudio
from tests.server.driving import FakeTranscriber, call, make_app, transcribe

if TYPE_CHECKING:
    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio


async def test_the_page_needs_no_key() -> None:
    """It asks for one itself; what it shows of the requests needs it."""
    app = make_app(api_key="secret")
    for path in ("/", "/web/page.js", "/web/style.css", "/web/languages.json", "/web/message.ogg"):
        assert (await call(app, "GET", path)).status == 200, path
    assert (await call(app, "GET", "/activity")).status == 401


async def test_the_policy_lets_nothing_else_in(app: ASGIApp) -> None:
    """The page has no script or style of its own text, and names no other address."""
    page = await call(app, "GET", "/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    text = page.body.decode()
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)|https?://", text)


async def test_every_file_that_the_page_names_is_there(app: ASGIApp) -> None:
    """So are the modules that its scripts import, each with its type."""
    html = (await call(app, "GET", "/")).body.decode()
    names = set(re.findall(r'(?:src|href)="web/([^"]+)"', html))
    todo = list(names)
    while todo:
        name = todo.pop()
        answer = await call(app, "GET", f"/web/{name}")
        assert answer.status == 200, name
        if name.endswith(".js"):
            assert answer.headers["content-type"].startswith("text/javascript")
            found = re.findall(r'from "\./([^"]+)"|address\("web/([^"]+)"\)', answer.body.decode())
            new = {one or other for one, other in found} - names
            names |= new
            todo += new
    assert {"page.js", "style.css", "icon.svg", "server.js", "player.js", "microphone-worklet.js"} <= names


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpage.py", "../page.py", ".", "__init__.py"])
async def test_nothing_else_is_served(app: ASGIApp, name: str) -> None:
    """A name that is not one of the page's files is a 404."""
    assert (await call(app, "GET", f"/web/{name}")).status == 404


async def test_activity_has_no_names_and_no_words(app: ASGIApp) -> None:
    """It has the length, the language and the time of each request with a recording, latest first."""
    await transcribe(app, filename="private.ogg")
    await transcribe(make_app(FakeTranscriber([UnreadableAudio()])))
    await call(app, "GET", "/v1/models")
    answer = await call(app, "GET", "/activity")
    (request,) = answer.json()["requests"]
    assert request.pop("ended") > 1_700_000_000
    assert request == {"status": 200, "seconds": 0.0, "audio_seconds": 2.5, "language": "en"}
    assert b"private" not in answer.body
    assert b"morning" not in answer.body


def test_activity_keeps_the_last_requests() -> None:
    """Failures count as requests, not as speed."""
    activity = Activity(now=lambda: 5.0)
    activity.add(400, 0.5, {"file": "x"})
    activity.add(200, 2.0, {"audio_seconds": 9.0, "language": "de"})
    activity.add(200, 1.0, {"audio_seconds": 3.0, "language": None, "failed": 500})
    described = activity.describe()
    assert described["audio_seconds_per_second"] == 4.0
    assert [request["status"] for request in described["requests"]] == [500, 200, 400]
    for _ in range(2 * MOST_REQUESTS):
        activity.add(400, 0.5, {})
    assert activity.describe() == {
        "requests": [activity.describe()["requests"][0]] * MOST_REQUESTS,
        "audio_seconds_per_second": None,
    }
