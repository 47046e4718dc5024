"""`install()`: an unchanged program's speech-to-text goes to the LAN server."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

import localwhisper
from localwhisper_client import Attempt, LocalServerUnavailable, LocalWhisper, MissingCloudKey
from localwhisper_client.patch import installation
from tests.client.fault_server import TEXT, refusing, says, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.fault_server import FaultServer

CLASSES = (OpenAI, AsyncOpenAI, openai.AzureOpenAI, openai.AsyncAzureOpenAI, LocalWhisper)
FILE = ("a.ogg", b"audio")
LIST = says(200, b"application/json", b'{"object":"list","data":[]}')


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    """Restore the SDK after each test."""
    yield
    localwhisper.uninstall()


@pytest.fixture
def local_server(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    """A LAN server that the environment names."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    return local_server


def transcribed(client: Any) -> str:
    """Transcribe with a client of either flavour."""
    if isinstance(client, AsyncOpenAI):

        async def call() -> str:
            async with client:
                return (await client.audio.transcriptions.create(model="whisper-1", file=FILE)).text

        return asyncio.run(call())
    with client:
        return str(client.audio.transcriptions.create(model="whisper-1", file=FILE).text)


@pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
def test_clients_made_before_and_after_are_routed(kind: Any, local_server: FaultServer) -> None:
    """Their key is not sent to the LAN server, and none is needed; a call that does need one says so."""
    before = kind(api_key="sk-secret")
    localwhisper.install()
    for client in (before, kind(api_key="sk-secret"), kind()):
        assert transcribed(client) == TEXT
    assert not any("authorization" in call.headers for call in local_server.calls)
    with pytest.raises(MissingCloudKey):
        OpenAI().models.list()


def test_a_key_is_needed_under_cloud(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the SDK raises its own error."""
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    localwhisper.install(policy="cloud")
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        OpenAI()


def test_other_calls_are_not_changed(local_server: FaultServer) -> None:
    """They go to the client's own address, with its own key."""
    localwhisper.install()
    with serving(LIST) as elsewhere, OpenAI(api_key="sk-mine", base_url=elsewhere.url) as client:
        client.models.list()
        assert transcribed(client) == TEXT
        assert elsewhere.probes[0].headers["authorization"] == "Bearer sk-mine"
        assert not elsewhere.calls
    assert len(local_server.calls) == 1


@pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
def test_the_cloud_is_the_programs_own_client(
    kind: Any, local_server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its address, key and headers, and a subclass's `request` runs once."""
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    counted = []

    class Mine(kind):  # type: ignore[misc]
        def request(self, *args: Any, **options: Any) -> Any:
            counted.append(1)
            return super().request(*args, **options)

    localwhisper.install(policy="cloud")
    local_server.behaviour = says(500, b"application/json", b"{}")
    with serving() as elsewhere:
        client = Mine(api_key="sk-mine", base_url=elsewhere.url, default_headers={"X-Mine": "1"})
        assert transcribed(client) == TEXT
        (call,) = elsewhere.calls
    assert (call.headers["authorization"], call.headers["x-mine"]) == ("Bearer sk-mine", "1")
    assert len(counted) == 1


def test_without_the_lan_nothing_leaves_it(cloud: FaultServer) -> None:
    """The default policy is local_only."""
    with refusing() as port:
        localwhisper.install(local_base_url=f"http://127.0.0.1:{port}/v1")
        with pytest.raises(LocalServerUnavailable):
            transcribed(OpenAI(base_url=cloud.url))
    assert not cloud.calls


def test_raw_responses_streams_and_azure(local_server: FaultServer) -> None:
    """Every shape of a call is routed, and so are the SDK's own subclasses."""
    localwhisper.install()
    with OpenAI() as client:
        raw = client.audio.transcriptions.with_raw_response.create(model="whisper-1", file=FILE)
        assert raw.parse().text == TEXT
        with client.audio.transcriptions.create(model="whisper-1", file=FILE, stream=True) as stream:
            assert [event.type for event in stream][-1] == "transcript.text.done"
    azure = openai.AzureOpenAI(api_key="k", azure_endpoint="https://mine.openai.azure.com", api_version="1")
    assert transcribed(azure) == TEXT
    assert len(local_server.calls) == 3


def test_the_module_itself(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`openai.audio.transcriptions.create`."""
    # The SDK keeps the settings and connections of its module client in the module.
    for name in ("_client", "webhook_secret", "admin_api_key", *localwhisper._SETTINGS):
        if hasattr(openai, name):
            monkeypatch.setattr(openai, name, None if name != "max_retries" else 2)
    localwhisper.install()
    assert openai.audio.transcriptions.create(model="whisper-1", file=FILE).text == TEXT
    assert openai._client is not None
    openai._client.close()
    assert len(local_server.calls) == 1


def test_our_own_clients_are_left_alone(local_server: FaultServer) -> None:
    """After installing twice, too: a call is one attempt."""
    seen: list[Any] = []
    localwhisper.install()
    localwhisper.install()
    assert transcribed(LocalWhisper(on_event=seen.append)) == TEXT
    assert len(local_server.calls) == len([event for event in seen if isinstance(event, Attempt)]) == 1


def test_all_clients_share_one_breaker(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that makes a client for each message waits once for a dead server. A later `.env` is still read."""
    seen: list[Any] = []
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", "nonsense")
    localwhisper.install(policy="cloud", on_event=seen.append)
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    local_server.stop()
    with serving() as elsewhere:
        for _ in range(3):
            assert transcribed(OpenAI(api_key="k", base_url=elsewhere.url)) == TEXT
    assert [event.verdict for event in seen if isinstance(event, Attempt) and not event.cloud] == ["outage"]


def test_uninstall_restores_every_attribute() -> None:
    """A method that was inherited is inherited again; a second call does nothing."""
    before = [dict(vars(kind)) for kind in CLASSES]
    localwhisper.install()
    assert [dict(vars(kind)) for kind in CLASSES] != before
    localwhisper.uninstall()
    localwhisper.uninstall()
    assert [dict(vars(kind)) for kind in CLASSES] == before
    with pytest.raises(openai.OpenAIError, match="api_key"):
        OpenAI()


def test_the_environment_of_a_run() -> None:
    """The hook is first, the other entries follow, and a nested run adds nothing."""
    for before, others in (({"A": "1", "PYTHONPATH": os.pathsep.join(["/x", "/y"])}, ["/x", "/y"]), ({}, [])):
        once = installation.environment(before)
        assert once == {**before, "PYTHONPATH": os.pathsep.join([str(installation.HOOK), *others])}
        assert installation.environment(once) == once
