"""What a call costs, what the ledger gets, and what the program is told; sync and async, over real sockets."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import itertools
import json
import logging
import sys
import threading
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

import localwhisper
from localwhisper_client import (
    Attempt,
    BudgetExceeded,
    BudgetReached,
    CloudUnsupported,
    LocalServerUnavailable,
    LocalWhisper,
    LocalWhisperError,
)
from localwhisper_client.cloud.attempt import fitting
from localwhisper_client.cloud.models import SHUTDOWN, Unsupported
from localwhisper_client.events import LanguageDropped
from tests.client.cloud.test_ledger import rows, spent
from tests.client.driving import SHAPES
from tests.client.fault_server import EVENTS, TEXT, answers, error, refusing, reset, response, says, serving, waits

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tests.client.driving import Driver
    from tests.client.fault_server import FaultServer, Request

VOICE = Path(__file__).parents[2] / "voices" / "en-60s.ogg"
SPEECH = ("secret.ogg", VOICE.read_bytes())
MINUTE = 0.006


def metered(conn: socket.socket, request: Request) -> None:
    """Answer as OpenAI does, with the usage of one minute; a stream tells none."""
    if request.wants_events:
        conn.sendall(response(200, b"text/event-stream", EVENTS))
    else:
        body = {"text": TEXT, "usage": {"type": "duration", "seconds": 60}}
        conn.sendall(response(200, b"application/json", json.dumps(body).encode()))


def unreadable(conn: socket.socket, _: Request) -> None:
    """Answer with JSON that is cut off."""
    conn.sendall(response(200, b"application/json", b"{cut"))


def fails(conn: socket.socket, request: Request) -> None:
    """Answer with an error that the client may retry at once."""
    error(503, b"retry-after-ms: 1")(conn, request)


def breaks(conn: socket.socket, _: Request) -> None:
    """Break the connection."""
    reset(conn)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the calls written to a ledger."""
    path = tmp_path / "ledger.sqlite3"
    monkeypatch.setenv("LOCALWHISPER_LEDGER", str(path))
    return path


@pytest.fixture
def budget(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set a budget, which the ledger keeps."""
    return lambda amount: monkeypatch.setenv("LOCALWHISPER_CLOUD_BUDGET", amount)


@pytest.fixture
def off() -> Iterator[str]:
    """Give the base URL of a LAN server that refuses connections."""
    with refusing() as port:
        yield f"http://127.0.0.1:{port}/v1"


def at(client: Any, seconds: float) -> None:
    """Set the time of day that a client sees, in seconds since the epoch."""
    client._route = replace(client._route, wall=lambda: seconds)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_on_the_lan_saves_money(shape: str, drive: Driver, ledger: Path) -> None:
    """By the answer's usage, else by the file's length. Neither the text nor the file's name is written."""
    with serving(metered) as local_server:
        assert drive.call(drive.client(local_base_url=local_server.url), shape, file=SPEECH) == TEXT
        (row,) = rows(ledger)
        assert (row.backend, row.cloud, row.reason, row.cost_usd) == (local_server.url, False, "", 0.0)
    assert row.audio_seconds == pytest.approx(60, abs=1.5)
    assert row.saved_usd == pytest.approx(MINUTE, rel=0.05)
    assert (row.seconds or 0) > 0
    written = b"".join(path.read_bytes() for path in ledger.parent.iterdir())
    assert b"secret" not in written
    assert TEXT.encode() not in written


@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_to_the_cloud_costs_money(shape: str, off: str, drive: Driver, cloud: FaultServer, ledger: Path) -> None:
    """One row, with the reason. A stream is charged by the file's length, at the price of the model that streams."""
    cloud.behaviour = metered
    client = drive.client(local_base_url=off, policy="cloud")
    assert drive.call(client, shape, model="large-v3", file=SPEECH) == TEXT
    (row,) = rows(ledger)
    assert (row.backend, row.cloud, row.saved_usd) == (cloud.url, True, 0.0)
    assert "ConnectError" in row.reason
    assert row.cost_usd == pytest.approx(0.0045 if shape.endswith("events") else MINUTE, rel=0.05)
    assert drive.last is not None
    assert (drive.last.backend, drive.last.cloud, drive.last.attempts) == (cloud.url, True, 2)
    assert drive.last.cost == row.cost_usd if shape != "streaming" else True
    assert "ConnectError" in drive.last.reason
    assert [event.cost for event in drive.events if isinstance(event, Attempt)] == [0.0, drive.last.cost]


@pytest.mark.parametrize(
    ("behaviour", "cost", "reason"), [(error(429), 0.0, "status 429"), (breaks, None, "APIConnectionError")]
)
def test_the_cost_of_a_failure(
    behaviour: Any, cost: float | None, reason: str, off: str, drive: Driver, cloud: FaultServer, ledger: Path
) -> None:
    """An error status costs nothing; that of a broken connection is unknown. The error names both backends."""
    cloud.behaviour = behaviour
    with pytest.raises(openai.APIError, match=rf"Tried: {off}.*{cloud.url}"):
        drive.call(drive.client(local_base_url=off, policy="cloud", max_retries=0))
    (row,) = rows(ledger)
    assert row.cost_usd == cost
    assert row.reason.startswith(reason)
    assert drive.last is not None
    assert (drive.last.backend, drive.last.cost, drive.last.attempts) == (cloud.url, cost, 2)
    assert reason in drive.last.reason


def test_without_a_ledger_nothing_is_written(
    off: str, drive: Driver, cloud: FaultServer, tmp_path: Path, monkeypatch: Any
) -> None:
    """The ledger is off by default. A file of unknown length and an answer without usage have an unknown cost."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for setting in ("", "1"):
        assert not list(tmp_path.iterdir())
        monkeypatch.setenv("LOCALWHISPER_LEDGER", setting)
        drive.call(drive.client(local_base_url=off, policy="cloud"))
        assert drive.last is not None
        assert (drive.last.cost, drive.last.audio_seconds) == (None, None)
    (row,) = rows(tmp_path / "localwhisper" / "ledger.sqlite3")
    assert (row.audio_seconds, row.cost_usd) == (None, None)


def test_a_ledger_that_cannot_be_written(
    off: str, drive: Driver, local_server: FaultServer, cloud: FaultServer, ledger: Path, budget: Any, caplog: Any
) -> None:
    """It stops no call but one to the cloud whose budget has to be checked; the log has a warning."""
    ledger.mkdir()
    with caplog.at_level(logging.WARNING, "localwhisper"):
        assert drive.call(drive.client(local_base_url=local_server.url)) == TEXT
        assert drive.call(drive.client(local_base_url=off, policy="cloud")) == TEXT
    assert caplog.text.count("cannot be written") == 2
    budget("5/month")
    assert drive.call(drive.client(local_base_url=local_server.url, policy="cloud")) == TEXT
    with pytest.raises(BudgetExceeded, match="cannot be checked"):
        drive.call(drive.client(local_base_url=off, policy="cloud"))
    assert len(cloud.calls) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_spent_budget_is_a_hard_stop(
    shape: str, off: str, drive: Driver, cloud: FaultServer, ledger: Path, budget: Any
) -> None:
    """Nothing is sent. An error that SDK code already handles says so, and an event has the amounts."""
    budget("0.0080/month")
    cloud.behaviour = metered
    client = drive.client(local_base_url=off, policy="cloud")
    drive.call(client, shape, file=SPEECH)
    for _ in range(2):
        with pytest.raises(BudgetExceeded, match=r"\$0.008/month") as raised:
            drive.call(client, shape, file=SPEECH)
    assert isinstance(raised.value, (LocalServerUnavailable, openai.APIConnectionError))
    assert off in str(raised.value)
    assert len(cloud.calls) == len(rows(ledger)) == 1
    first, second = (event for event in drive.events if isinstance(event, BudgetReached))
    assert first.cost == second.cost is not None
    refused = [event for event in drive.events if isinstance(event, Attempt) and event.verdict == "refused"]
    assert [event.cloud for event in refused] == [False, False]
    assert drive.last is not None
    assert drive.last.attempts == 0


def test_a_new_day_is_a_new_budget(off: str, drive: Driver, cloud: FaultServer, budget: Any) -> None:
    """It begins at midnight."""
    budget("0.008/day")
    cloud.behaviour = metered
    client = drive.client(local_base_url=off, policy="cloud")
    now = dt.datetime.fromisoformat("2026-11-22T12:00").astimezone().timestamp()
    for day in (0, 1):
        at(client, now + day * 86400)
        drive.call(client, file=SPEECH)
        with pytest.raises(BudgetExceeded):
            drive.call(client, file=SPEECH)
    assert len(cloud.calls) == 2


@pytest.mark.parametrize("behaviour", [fails, breaks])
def test_each_attempt_is_reserved(
    behaviour: Any, off: str, drive: Driver, cloud: FaultServer, ledger: Path, budget: Any
) -> None:
    """The SDK retries nothing by itself: the plan retries, and reserves each attempt before it is sent."""
    budget("0.014/month")
    cloud.behaviour = behaviour
    with pytest.raises(openai.APIError):
        drive.call(drive.client(local_base_url=off, policy="cloud"), file=SPEECH)
    assert len(cloud.calls) == len([row for row in rows(ledger) if row.cloud])
    # An error status costs nothing, so all three attempts fit. Broken connections keep what they reserved.
    assert len(cloud.calls) == (3 if behaviour is fails else 2)
    assert drive.last is not None
    assert drive.last.attempts == len(cloud.calls) + 1  # the LAN server was asked first


def test_retries_keep_to_the_calls_deadline(off: str, drive: Driver, cloud: FaultServer) -> None:
    """A silent cloud ends the call at its deadline; attempts do not each have their own, or there were three."""
    cloud.behaviour = lambda conn, _: waits(conn)
    with pytest.raises(openai.APITimeoutError):
        drive.call(drive.client(local_base_url=off, policy="cloud", timeout=0.5))
    assert len(cloud.calls) <= 1  # none, if this machine stood still until the deadline


@pytest.mark.parametrize(
    ("behaviour", "attempts"),
    [
        (error(500), 3),
        (error(429, b"retry-after-ms: 1"), 3),
        (error(503, b"retry-after: 3600"), 1),
        (error(500, b"x-should-retry: false"), 1),
        (error(400), 1),
        (error(401), 1),
        (says(429, b"application/json", b'{"error": {"message": "x", "code": "insufficient_quota"}}'), 1),
        (unreadable, 1),
    ],
)
def test_which_failures_of_the_cloud_are_retried(
    behaviour: Any, attempts: int, off: str, drive: Driver, cloud: FaultServer
) -> None:
    """Those that may be over in a moment; never those that the cloud calls final, nor answers that were paid for."""
    cloud.behaviour = behaviour
    with pytest.raises((openai.OpenAIError, json.JSONDecodeError)):
        drive.call(drive.client(local_base_url=off, policy="cloud", timeout=20))
    assert len(cloud.calls) == attempts


@pytest.mark.parametrize(
    "behaviour",
    [
        unreadable,
        says(200, b"application/json", b'{"text": "x", "usage": {"type": "duration", "seconds": -1000000}}'),
        says(200, b"application/json", b'{"text": "x", "usage": {"type": "duration", "seconds": "nan"}}'),
    ],
)
def test_an_unreadable_answer_costs_what_was_reserved(
    behaviour: Any, off: str, drive: Driver, cloud: FaultServer, ledger: Path, budget: Any
) -> None:
    """Neither zero nor a negative cost is believed: the next call finds the budget spent."""
    budget("0.008/month")
    cloud.behaviour = behaviour
    client = drive.client(local_base_url=off, policy="cloud")
    with contextlib.suppress(ValueError):
        drive.call(client, file=SPEECH)
    assert spent(ledger) == pytest.approx(MINUTE, rel=0.1)
    with pytest.raises(BudgetExceeded):
        drive.call(client, file=SPEECH)
    assert len(cloud.calls) == 1


@pytest.mark.parametrize("counts", [True, False])
def test_ten_calls_at_once_overspend_nothing(
    counts: bool,  # noqa: FBT001 - pytest passes it by name
    off: str,
    cloud: FaultServer,
    ledger: Path,
    budget: Any,
    monkeypatch: Any,
) -> None:
    """Joined recordings, and a cloud that fails in every way and is retried: never more than the budget."""
    if not counts:
        monkeypatch.setitem(sys.modules, "av", None)
    budget("0.01/month")
    joined = (VOICE.parent / "de-5s.ogg").read_bytes() * 8
    price, billed, lock = MINUTE * 40 / 60, [0.0], threading.Lock()
    behaviours = itertools.cycle([fails, breaks, answers, unreadable])

    def bills(conn: socket.socket, request: Request) -> None:
        with lock:
            behaviour = next(behaviours)
            billed[0] += 0.0 if behaviour is fails else price
        behaviour(conn, request)

    cloud.behaviour = bills

    def call(_: int) -> None:
        with contextlib.suppress(openai.OpenAIError, ValueError):
            client.audio.transcriptions.create(model="whisper-1", file=("a.ogg", joined))

    with LocalWhisper(local_base_url=off, policy="cloud", timeout=20) as client, ThreadPoolExecutor(10) as threads:
        list(threads.map(call, range(10)))
    assert spent(ledger) <= 0.01
    assert billed[0] <= 0.01
    assert bool(cloud.calls) is counts


def test_a_language_is_sent_in_the_successors_way(off: str, drive: Driver, cloud: FaultServer) -> None:
    """As an entry of `languages[]`; a language that it would refuse is left out, and an event says so."""
    client = drive.client(local_base_url=off, policy="cloud")
    drive.call(client, model="gpt-transcribe", language="de")
    assert b'name="languages[]"\r\n\r\nde\r\n' in cloud.calls[-1].body
    assert b'name="language"' not in cloud.calls[-1].body
    drive.call(client, model="gpt-transcribe", language="eu")
    assert b"language" not in cloud.calls[-1].body
    dropped = [event for event in drive.events if isinstance(event, LanguageDropped)]
    assert dropped == [LanguageDropped(cloud.url, "eu", "gpt-transcribe")]


def test_the_day_whisper_is_shut_down(off: str, drive: Driver, cloud: FaultServer) -> None:
    """The successor answers what it can. It cannot give srt: the cloud is not asked, and the error says since when."""
    client = drive.client(local_base_url=off, policy="cloud")
    shutdown = dt.datetime.combine(SHUTDOWN, dt.time(), dt.UTC).timestamp()
    for now, model in ((shutdown - 1, b"whisper-1"), (shutdown, b"gpt-transcribe")):
        at(client, now)
        drive.call(client, model="large-v3")
        assert b'name="model"\r\n\r\n' + model + b"\r\n" in cloud.calls[-1].body
    for shape in ("plain", "events"):
        with pytest.raises(CloudUnsupported, match=r"OpenAI has no model") as raised:
            drive.call(client, shape, response_format="srt")
        assert isinstance(raised.value, LocalWhisperError)
        assert off in str(raised.value)
        assert cloud.url not in str(raised.value)
    assert len(cloud.calls) == 2


def test_a_file_too_big_for_the_cloud(off: str, drive: Driver, cloud: FaultServer, monkeypatch: Any) -> None:
    """It is made smaller with PyAV. Without PyAV, or if it is no audio or still too big, an error says so."""
    client = drive.client(local_base_url=off, policy="cloud")
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setparams((1, 2, 48000, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(26_300_000))
    big = ("a.wav", target.getvalue())
    drive.call(client, file=big)
    body = cloud.calls[0].body
    assert len(body) < 2_000_000
    assert b"OggS" in body
    assert b"a.wav" not in body
    with pytest.raises(CloudUnsupported, match="cannot be read"):
        drive.call(client, file=("a.wav", bytes(27_000_000)))
    with pytest.raises(Unsupported, match="still has 27 MB"):
        fitting([("file", big)], lambda _: bytes(27_000_000))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CloudUnsupported, match=r"pip install '\.\[transcode\]' in the clone"):
        drive.call(client, file=big)
    assert len(cloud.calls) == 1


def test_last_call_is_the_tasks_own(local_server: FaultServer) -> None:
    """A thread that made no call has none."""
    local_server.behaviour = metered
    with LocalWhisper(local_base_url=local_server.url) as client:
        client.audio.transcriptions.create(model="whisper-1", file=b"x")
    last = localwhisper.last_call()
    assert last is not None
    assert (last.backend, last.cloud, last.reason, last.cost, last.audio_seconds, last.attempts) == (
        local_server.url, False, "", 0.0, 60.0, 1,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as other:
        assert other.submit(localwhisper.last_call).result() is None
