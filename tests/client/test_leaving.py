"""Audio stays on the LAN under `local_only` and `wait`, whichever method of the SDK a program calls."""

from __future__ import annotations

import inspect
import io
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import openai
import pytest

import localwhisper
from localwhisper_client import (
    AsyncLocalWhisper,
    CloudNotAllowed,
    ConfigurationError,
    LocalServerUnavailable,
    LocalWhisper,
)
from localwhisper_client.lan.servers import REMEMBERED, Hosts
from tests.client.fault_server import EVENTS, TEXT, answers, refusing, response, says, serving
from tests.client.leaving import names, no_socket_leaves

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.client.driving import Driver
    from tests.client.fault_server import FaultServer, Request

SRT = "1\n00:00:00,000 --> 00:00:01,000\na voice message\n\n"
VTT = "WEBVTT\n\n00:00.000 --> 00:01.000\na voice message\n\n"
PUBLIC = "203.0.113.9"

pytestmark = pytest.mark.usefixtures("module_client")


@pytest.fixture(autouse=True)
def guarded() -> Iterator[None]:
    """No test here reaches anything outside of the LAN; the SDK and the module are as they were at the end."""
    with no_socket_leaves(), names(gateway_example=PUBLIC, pc_example="127.0.0.1", both_example="localhost"):
        yield
    localwhisper.uninstall()


def by_field(conn: socket.socket, request: Request) -> None:
    """Answer in the format that the form's last `response_format` names."""
    formats = {b"srt": (b"application/x-subrip", SRT), b"vtt": (b"text/vtt", VTT), b"text": (b"text/plain", TEXT)}
    for name, (kind, body) in formats.items():
        if b'name="response_format"\r\n\r\n' + name in request.body:
            conn.sendall(response(200, kind, body.encode()))
            return
    answers(conn, request)


@pytest.mark.parametrize(
    ("body", "arguments", "text"),
    [
        ({"response_format": "srt"}, {}, SRT),
        ({"response_format": "vtt"}, {"response_format": "json"}, VTT),
        ({"response_format": "text"}, {"response_format": "verbose_json"}, TEXT),
        ({"stream": True}, {}, EVENTS.decode()),
        ({"stream": "true"}, {}, EVENTS.decode()),
        ({"stream": False}, {"stream": True}, None),
        ({"stream": "false", "prompt": "Hello"}, {}, TEXT),
    ],
)
def test_the_answer_is_judged_by_what_is_sent(
    body: dict[str, Any],
    arguments: dict[str, Any],
    text: str | None,
    drive: Driver,
    local_server: FaultServer,
    cloud: FaultServer,
) -> None:
    """`extra_body` goes over the arguments: a right answer is right, is not paid for, and opens no breaker."""
    local_server.behaviour = by_field
    client = drive.client(local_base_url=local_server.url, policy="cloud")
    for _ in range(4):
        fields = {"model": "whisper-1", "file": ("a.ogg", b"x"), "extra_body": body, **arguments}
        answer = drive.run(lambda fields: client.audio.transcriptions.create(**fields), fields)
        if text is not None:
            assert (answer if isinstance(answer, str) else answer.text) == text
    assert len(local_server.calls) == 4
    assert not cloud.calls


def test_a_stream_asked_for_in_extra_body_must_be_whole(
    drive: Driver, local_server: FaultServer, cloud: FaultServer
) -> None:
    """Half of one is no answer, and the cloud is asked for what was asked for: a stream."""
    local_server.behaviour = says(
        200, b"text/event-stream", EVENTS.partition(b'data: {"type":"transcript.text.done')[0]
    )
    client = drive.client(local_base_url=local_server.url, policy="cloud")
    assert drive.call(client, extra_body={"stream": True}).endswith(EVENTS.decode()[-20:])
    (call,) = cloud.calls
    assert call.wants_events


def test_a_body_of_the_programs_own_goes_to_the_lan_alone(local_server: FaultServer, cloud: FaultServer) -> None:
    """Its fields cannot be read, so no model of the cloud's can be chosen for it."""
    options: Any = {"headers": {"Content-Type": "audio/ogg"}}
    name = "content" if "content" in inspect.signature(LocalWhisper.post).parameters else "body"
    own: Any = {"cast_to": object, "options": options, name: b"x"}
    with LocalWhisper(local_base_url=local_server.url, policy="cloud") as client:
        answer: Any = client.post("/audio/transcriptions", **own)
        assert answer["text"] == TEXT
        local_server.behaviour = says(500, b"application/json", b"{}")
        with pytest.raises(LocalServerUnavailable, match="wrote the body itself"):
            client.post("/audio/transcriptions", **own)
    assert not cloud.calls


PATHS = [
    "/audio/x/../transcriptions",
    "/audio/x/%2e%2e/transcriptions",
    "/audio/x/%252e%252E/transcriptions",
    "/audio\\transcriptions",
    "/audio/transcriptions;v=1",
    "/audio/transcriptions%0A",
    "/audio/transcriptions/",
    "/Audio//Transcriptions?x=1",
    "/audio%2Ftranscriptions",
    "../v1/audio/transcriptions",
    "audio/transcriptions#a",
    "https://api.openai.com/v1/audio/transcriptions",
    "//api.openai.com/v1/audio/transcriptions",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("patched", [False, True])
def test_no_spelling_of_a_path_escapes(
    path: str,
    patched: bool,  # noqa: FBT001 - pytest passes it by name
    local_server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server would find the way from it, so the routing does; and the LAN server is asked at its own address."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    if patched:
        localwhisper.install()
    with openai.OpenAI(api_key="k") if patched else LocalWhisper(api_key="k") as client:
        answer: Any = client.post(path, cast_to=object, body={"model": "whisper-1"}, files={"file": ("a.ogg", b"x")})
    assert answer["text"] == TEXT
    assert [call.path for call in local_server.calls] == ["/v1/audio/transcriptions"]


@pytest.mark.parametrize("url", [f"https://{PUBLIC}/v1", "https://gateway.example/api/v1", "http://100.64.0.1:5000/v1"])
@pytest.mark.parametrize("policy", ["local_only", "wait", "cloud"])
def test_a_gateway_in_openai_base_url_is_not_the_lan(
    url: str, policy: str, drive: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused when speech is sent, not before: the program may be there for chat alone. The remedy is named."""
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    client = drive.client(policy=policy)
    assert str(client.base_url).rstrip("/") == url
    for each in (client, client.with_options(timeout=3), client.copy(local_api_key="k")):
        with pytest.raises(ConfigurationError, match=f"LOCALWHISPER_BASE_URL.*{url}"):
            drive.call(each)


def test_a_name_is_judged_by_what_it_resolves_to(
    drive: Driver, local_server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pc.example` is this machine; one that resolves to nothing is not there, and may not come to be elsewhere."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://pc.example:{local_server.port}/v1")
    assert drive.call(drive.client()) == TEXT
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://nowhere.example:{local_server.port}/v1")
    with pytest.raises(LocalServerUnavailable, match=r"nowhere\.example"):
        drive.call(drive.client(timeout=2))
    assert len(local_server.calls) == 1


def test_a_look_up_counts_for_a_minute() -> None:
    """Then the name is looked up again, since its address may have changed."""
    now = [0.0]
    hosts = Hosts(lambda: now[0])
    with names(pc2_example="127.0.0.1"):
        assert hosts.on_lan("http://pc2.example", 5)
    with names(pc2_example=PUBLIC):
        assert hosts.on_lan("http://pc2.example", 5)
        now[0] = REMEMBERED
        assert hosts.on_lan("http://pc2.example", 5) is False
    assert hosts.on_lan("http://nowhere.example", 5) is None


def test_a_server_named_by_hand_may_be_anywhere_and_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """`LOCALWHISPER_BASE_URL` is the user's word; the log says where the answers come from."""

    def answered(peer: str) -> Any:
        stream = SimpleNamespace(get_extra_info=lambda _: (peer, 443))
        request = SimpleNamespace(url=SimpleNamespace(host="gateway.example"))
        return SimpleNamespace(extensions={"network_stream": stream}, request=request)

    hosts = Hosts()
    for peer in ("192.168.1.5", "127.0.0.1", "fe80::1%eth0", PUBLIC, PUBLIC):
        hosts.warn_if_outside(answered(peer))
    hosts.warn_if_outside(SimpleNamespace(extensions={}))
    assert [record.args for record in caplog.records] == [("gateway.example", PUBLIC)]


@pytest.mark.parametrize(
    "url", ["https://eu.api.openai.com/v1", "https://gateway.example/api/v1", "http://127.0.0.1:4000/v1"]
)
def test_what_is_not_speech_goes_where_the_sdk_sends_it(
    url: str, local_server: FaultServer, cloud: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`openai.OpenAI().chat` and `openai.chat` under the shim alike; speech goes to the cloud that is named for it."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    local_server.behaviour = says(500, b"application/json", b"{}")
    with localwhisper.OpenAI(policy="cloud") as client:
        for each in (client, client.with_options(timeout=9)):
            assert str(each.base_url).rstrip("/") == url
            assert each.audio.transcriptions.create(model="whisper-1", file=b"x").text == TEXT
    assert len(cloud.calls) == 2


CONVERSATION: dict[str, Any] = {"model": "gpt-realtime"}


def realtime(client: Any) -> list[Any]:
    """Return every `connect` of the SDK's that streams audio, as far as this version has it."""
    methods = [client.realtime.connect, client.beta.realtime.connect] if hasattr(client.beta, "realtime") else []
    methods += [client.realtime.translations.connect] if hasattr(client.realtime, "translations") else []
    return methods + ([client.live.connect] if hasattr(client, "live") else [])


@pytest.mark.parametrize("kind", [LocalWhisper, AsyncLocalWhisper])
@pytest.mark.parametrize("policy", ["local_only", "wait"])
def test_no_conversation_is_opened_to_the_cloud(kind: Any, policy: str) -> None:
    """It sends what is said; it is refused before a connection, in words that name the way out."""
    client = kind(policy=policy, api_key="k")
    assert len(realtime(client)) >= 2
    for connect in realtime(client) + realtime(client.with_options(timeout=3)):
        with pytest.raises(CloudNotAllowed, match=f"api.openai.com.*{policy}.*LOCALWHISPER_POLICY=cloud"):
            connect(**CONVERSATION)


@pytest.mark.parametrize("kind", [LocalWhisper, AsyncLocalWhisper])
def test_a_conversation_that_may_be_opened_is_the_sdks(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the cloud by policy, unless a block around the call forbids it; and to a server on the LAN always."""
    for client in (
        kind(base_url="http://127.0.0.1:9/v1", api_key="k"),
        kind(websocket_base_url="ws://[::1]/v1", api_key="k"),
    ):
        assert client.realtime.connect(**CONVERSATION) is not None
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    client = kind(policy="cloud", api_key="k")
    manager = client.realtime.connect(**CONVERSATION)
    assert type(manager).__module__.startswith("openai.")
    for module in (client, localwhisper):
        for connect in (module.realtime.connect, module.beta.realtime.connect):
            with localwhisper.policy("local_only"), pytest.raises(CloudNotAllowed):
                connect(**CONVERSATION)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize(
    "path", ["/realtime/client_secrets", "/realtime/calls", "/realtime/transcription_sessions", "/v1/live/sessions"]
)
def test_no_realtime_session_is_prepared(path: str, patched: bool, drive: Driver) -> None:  # noqa: FBT001 - pytest passes it by name
    """A key for one lets a browser stream what it hears; ending one is not refused."""
    if patched:
        localwhisper.install()
    kinds = (openai.OpenAI, openai.AsyncOpenAI) if patched else (LocalWhisper, AsyncLocalWhisper)
    client = kinds[drive.flavour == "async"](api_key="k", max_retries=0, timeout=2)
    with pytest.raises(CloudNotAllowed):
        drive.run(lambda: client.post(path, cast_to=object, body={}))
    with serving(says(200, b"application/json", b"{}")) as elsewhere:
        other = client.with_options(base_url=elsewhere.url)
        drive.run(lambda: other.post(f"{path}/c/hangup", cast_to=object))
        drive.run(client.close)
    assert len(elsewhere.calls) == 1


AZURE = {"api_key": "k", "azure_endpoint": "https://mine.openai.azure.com", "api_version": "1"}


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize(
    ("deployment", "model", "asked"),
    [(None, "whisper", b"whisper-1"), ("speech", "", b"whisper-1"), (None, "gpt-4o-transcribe", b"gpt-4o-transcribe")],
)
def test_azure_is_answered_on_the_lan(
    patched: bool,  # noqa: FBT001 - pytest passes it by name
    deployment: Any,
    model: str,
    asked: bytes,
    drive: Driver,
    local_server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under the shim and patched; a deployment's name is the user's own, so OpenAI's stands for it."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    if patched:
        localwhisper.install()
    kind = "AzureOpenAI" if drive.flavour == "sync" else "AsyncAzureOpenAI"
    client = getattr(openai if patched else localwhisper, kind)(azure_deployment=deployment, **AZURE)
    assert isinstance(client, getattr(openai, kind))
    for each in (client, client.with_options(timeout=5)):
        assert drive.call(each, model=model) == TEXT
    drive.run(client.close)
    for call in local_server.calls:
        assert call.path == "/v1/audio/transcriptions"
        assert b'name="model"\r\n\r\n' + asked + b"\r\n" in call.body
        assert "api-key" not in call.headers
        assert "authorization" not in call.headers


def test_azure_is_its_own_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """By policy, under the deployment's name, at Azure's address; by default never."""
    with serving() as azure, refusing() as port:
        monkeypatch.setenv("LOCALWHISPER_BASE_URL", f"http://127.0.0.1:{port}/v1")
        monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
        options = {**AZURE, "azure_endpoint": azure.url.removesuffix("/v1")}
        with localwhisper.AzureOpenAI(policy="cloud", **options) as client:
            assert client.audio.transcriptions.create(model="mine", file=b"x").text == TEXT
            with pytest.raises(LocalServerUnavailable), localwhisper.policy("local_only"):
                client.audio.transcriptions.create(model="mine", file=b"x")
        (call,) = azure.calls
    assert call.path == "/openai/deployments/mine/audio/transcriptions?api-version=1"
    assert call.headers["api-key"] == "k"
    assert b'name="model"\r\n\r\nmine\r\n' in call.body


def test_the_audio_of_a_chat_is_the_callers_own_doing() -> None:
    """Only speech-to-text is ours: a chat goes where it went, sound in it or not, and so does text to be spoken."""
    answer = says(200, b"application/json", json.dumps({"choices": []}).encode())
    with serving(answer) as elsewhere, LocalWhisper(base_url=elsewhere.url, api_key="k") as client:
        sound: Any = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": [sound]}])
        client.audio.speech.create(model="m", voice="alloy", input="hello")
        client.files.create(file=io.BytesIO(b"x"), purpose="assistants")
    assert [call.path for call in elsewhere.calls] == ["/v1/chat/completions", "/v1/audio/speech", "/v1/files"]
