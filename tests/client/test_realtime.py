"""Realtime sessions: transcriptions go to the local server with its own key, and to the cloud only as a policy says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

import localwhisper
from localwhisper_client import CloudNotAllowed, LocalServerTimeout, LocalServerUnavailable, events, last_call

pytest.importorskip("websockets")

from tests.client.driving import in_time
from tests.client.leaving import no_socket_leaves
from tests.client.realtime_server import RealtimeServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.driving import Driver

INTENT: dict[str, Any] = {"extra_query": {"intent": "transcription"}}
if openai.__version__.startswith("1."):
    INTENT["model"] = "whisper-1"  # that SDK's `connect` wants one
POLICIES = ("local_only", "wait", "cloud")
# What only the cloud may see.
SECRETS = {
    "OPENAI_API_KEY": "the-clouds-key",
    "OPENAI_ORG_ID": "the-clouds-organisation",
    "OPENAI_PROJECT_ID": "the-clouds-project",
    "OPENAI_CUSTOM_HEADERS": "x-gateway: the-clouds-gateway",
}


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    """Restore the SDK after each test."""
    yield
    localwhisper.uninstall()


@pytest.fixture
def lan(monkeypatch: pytest.MonkeyPatch) -> Iterator[RealtimeServer]:
    """A local server with a key, and the environment of a program that uses the cloud too."""
    with serving() as server:
        monkeypatch.setenv("LOCALWHISPER_BASE_URL", server.url)
        monkeypatch.setenv("LOCALWHISPER_API_KEY", "the-servers-key")
        for name, value in SECRETS.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def cloud() -> Iterator[RealtimeServer]:
    """A stand-in for the cloud."""
    with serving() as server:
        yield server


def at(cloud: RealtimeServer, **options: Any) -> dict[str, Any]:
    """Return the arguments of a client whose cloud is the stand-in; SDK 1 would use wss."""
    return {"base_url": cloud.url, "websocket_base_url": cloud.url.replace("http", "ws"), "timeout": 5, **options}


async def first_event(connecting: Any) -> str:
    """Open a session, exchange an event, and return the types of the first two events."""
    if hasattr(connecting, "__aenter__"):
        async with connecting as connection:
            created = await connection.recv()
            await connection.send({"type": "input_audio_buffer.clear"})
            return f"{created.type} {(await connection.recv()).type}"
    with connecting as connection:
        created = connection.recv()
        connection.send({"type": "input_audio_buffer.clear"})
        return f"{created.type} {connection.recv().type}"


EXCHANGED = "session.created input_audio_buffer.clear"


def resources(client: Any) -> list[Any]:
    """Return every part of the SDK that opens transcriptions."""
    return [client.realtime] + ([client.beta.realtime] if hasattr(client.beta, "realtime") else [])


def unseen(server: RealtimeServer) -> bool:
    """Whether no request to a server had any of the cloud's secrets."""
    return not [value for each in server.opened for value in each.headers.values() if "the-clouds" in value]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["client", "shim", "install"])
def test_a_transcription_goes_to_the_local_server(
    way: str, policy: str, lan: RealtimeServer, drive: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under every policy, with the server's key, without anything of the cloud's, past the environment's proxy."""
    monkeypatch.setenv("LOCALWHISPER_POLICY", policy)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    module: Any = localwhisper
    if way == "install":
        localwhisper.install()
        module = openai
    kind = module.OpenAI if drive.flavour == "sync" else module.AsyncOpenAI
    options = {} if way == "install" else {"policy": policy}
    client = kind(default_headers={"x-mine": "the-clouds-too"}, default_query={"k": "the-clouds"}, **options)
    headers = {"X-Secret": "the-clouds-secret", "OpenAI-Beta": "realtime=v1"}
    with no_socket_leaves():
        for each in resources(client):
            query = {**INTENT["extra_query"], "key": "the-clouds"}
            model = {"model": "whisper-1"} if each is not client.realtime else {}  # the old form needs one
            connecting = each.connect(**{**INTENT, **model, "extra_query": query}, extra_headers=headers)
            assert drive.run(first_event, connecting) == EXCHANGED
    drive.run(client.close)
    assert len(lan.opened) == len(resources(client))
    for opened in lan.opened:
        assert opened.path.startswith("/v1/realtime?")
        assert "intent=transcription" in opened.path
        assert "the-clouds" not in opened.path
        assert opened.headers["authorization"] == "Bearer the-servers-key"
        assert opened.headers["openai-beta"] == "realtime=v1"
    assert unseen(lan)


def test_a_server_without_a_key_gets_none(lan: RealtimeServer, drive: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the cloud's nor a made-up one. The program needs no key for the cloud either."""
    monkeypatch.delenv("LOCALWHISPER_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY")
    localwhisper.install()
    plain = openai.OpenAI() if drive.flavour == "sync" else openai.AsyncOpenAI()
    for client in (plain, drive.client()):
        assert drive.run(first_event, client.realtime.connect(**INTENT)) == EXCHANGED
    drive.run(plain.close)
    assert ["authorization" in opened.headers for opened in lan.opened] == [False, False]


@pytest.mark.parametrize("patched", [False, True])
def test_azures_clients(patched: bool, lan: RealtimeServer, drive: Driver) -> None:  # noqa: FBT001 - pytest passes it by name
    """The deployment's name, which is the user's own, is replaced by a model's."""
    if patched:
        localwhisper.install()
    kind = "AzureOpenAI" if drive.flavour == "sync" else "AsyncAzureOpenAI"
    options = {"api_key": "the-clouds-azure", "azure_endpoint": "https://mine.openai.azure.com", "api_version": "1"}
    client = getattr(openai if patched else localwhisper, kind)(**options)
    assert drive.run(first_event, client.realtime.connect(**{**INTENT, "model": "mine"})) == EXCHANGED
    drive.run(client.close)
    assert "model=whisper-1" in lan.opened[0].path
    assert unseen(lan)


def test_the_modules_own_client(lan: RealtimeServer, module_client: None, drive: Driver) -> None:
    """`localwhisper.realtime`, and a model that only transcribes in place of the intent."""
    assert drive.run(first_event, localwhisper.realtime.connect(**INTENT)) == EXCHANGED
    assert drive.run(first_event, localwhisper.realtime.connect(model="gpt-4o-transcribe")) == EXCHANGED
    assert lan.opened[-1].path == "/v1/realtime?model=gpt-4o-transcribe"


@pytest.mark.parametrize("unready", ["refused", "loading"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_server_that_is_not_ready(
    policy: str, unready: str, lan: RealtimeServer, cloud: RealtimeServer, drive: Driver
) -> None:
    """Only `cloud` lets the session go to the cloud, with the cloud's key; the others say why there is none."""
    lan.ready = [503]
    address = {"local_base_url": "http://127.0.0.1:9/v1"} if unready == "refused" else {}

    def within(seconds: float) -> None:
        client = drive.client(**at(cloud, policy=policy, timeout=seconds, **address))
        connecting = client.realtime.connect(**INTENT)
        if policy == "cloud":
            assert drive.run(first_event, connecting) == EXCHANGED
            assert [opened.headers["authorization"] for opened in cloud.opened] == ["Bearer the-clouds-key"]
            assert any(isinstance(event, events.Fallback) for event in drive.events)
        else:
            error = LocalServerTimeout if policy == "wait" else LocalServerUnavailable
            said = "refused|ConnectError" if unready == "refused" else "not ready: the model is being loaded"
            with pytest.raises(error, match=said):
                drive.run(first_event, connecting)
            assert not cloud.opened
        assert not lan.opened

    if policy == "wait":
        in_time(within)
    else:
        within(60.0)


def test_wait_tries_again(lan: RealtimeServer, cloud: RealtimeServer, drive: Driver) -> None:
    """Until the server is ready."""
    lan.ready = [503, 200]
    client = drive.client(**at(cloud, policy="wait"))
    assert drive.run(first_event, client.realtime.connect(**INTENT)) == EXCHANGED
    assert (lan.asked, len(lan.opened), len(cloud.opened)) == (2, 1, 0)


def test_another_server_takes_the_session(lan: RealtimeServer, drive: Driver) -> None:
    """The servers are tried in turn, and how the choice went is told as for any call."""
    client = drive.client(local_base_url=f"http://127.0.0.1:9/v1,{lan.url}")
    told: list[Any] = []

    async def open_one() -> None:
        await first_event(client.realtime.connect(**INTENT))
        told.append(last_call())

    drive.run(open_one)
    assert (told[0].backend, told[0].cloud, told[0].attempts) == (lan.url, False, 2)
    assert [event.verdict for event in drive.events if isinstance(event, events.Attempt)] == ["outage", "answered"]


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, openai.AuthenticationError, "Set LOCALWHISPER_API_KEY"),
        (403, openai.PermissionDeniedError, "update localwhisper-server"),
        (404, openai.NotFoundError, "update localwhisper-server"),
        (426, openai.APIStatusError, "update localwhisper-server"),
        (429, openai.RateLimitError, "status 429"),
    ],
)
@pytest.mark.parametrize("policy", ["local_only", "cloud"])
def test_a_server_that_refuses_the_session(
    policy: str, status: int, kind: Any, said: str, lan: RealtimeServer, cloud: RealtimeServer, drive: Driver
) -> None:
    """Its status is the SDK's error, with what to do; the cloud does not hide it."""
    lan.refuses = status
    client = drive.client(**at(cloud, policy=policy))
    with pytest.raises(kind, match=f"{lan.url}.*{said}") as caught:
        drive.run(first_event, client.realtime.connect(**INTENT))
    assert caught.value.status_code == status
    assert not cloud.opened


@pytest.mark.parametrize("patched", [False, True])
def test_a_conversation_is_refused(patched: bool, lan: RealtimeServer, drive: Driver) -> None:  # noqa: FBT001 - pytest passes it by name
    """It is no transcription, and the local server holds none."""
    if patched:
        localwhisper.install()
    kind = openai.OpenAI if drive.flavour == "sync" else openai.AsyncOpenAI
    client = kind() if patched else drive.client()
    with pytest.raises(CloudNotAllowed, match=r"api\.openai\.com.*LOCALWHISPER_POLICY=cloud"):
        drive.run(lambda: first_event(client.realtime.connect(model="gpt-realtime")))
    drive.run(client.close)
    assert not lan.opened


def test_a_conversation_goes_to_the_cloud_if_it_may(lan: RealtimeServer, cloud: RealtimeServer, drive: Driver) -> None:
    """Under `cloud` it is the SDK's own."""
    client = drive.client(**at(cloud, policy="cloud"))
    assert drive.run(first_event, client.realtime.connect(model="gpt-realtime")) == EXCHANGED
    assert [opened.path for opened in cloud.opened] == ["/v1/realtime?model=gpt-realtime"]
    assert not lan.opened


def test_what_a_program_did_before_it_connected_is_kept(lan: RealtimeServer, drive: Driver) -> None:
    """Handlers and events that wait for the connection, as newer SDKs have them."""
    client = drive.client()
    connecting = client.realtime.connect(**INTENT)
    if not hasattr(connecting, "on"):
        pytest.skip("this SDK has no handlers")
    heard: list[str] = []

    async def listen() -> None:
        chained = connecting.on("session.created", lambda event: heard.append(event.type))
        chained.send({"type": "input_audio_buffer.clear"})
        opened = chained.enter()
        connection = await opened if drive.flavour == "async" else opened

        def stop(event: Any) -> Any:
            heard.append(event.type)
            return connection.close()

        connection.on("input_audio_buffer.clear", stop)
        dispatched = connection.dispatch_events()
        if drive.flavour == "async":
            await dispatched

    drive.run(listen)
    assert heard == ["session.created", "input_audio_buffer.clear"]
    assert lan.opened[0].headers["authorization"] == "Bearer the-servers-key"
