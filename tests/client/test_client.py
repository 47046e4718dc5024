"""What `LocalWhisper` keeps of the SDK, what it adds, and what it never sends; sync and async."""

from __future__ import annotations

import gc
import inspect
import io
from typing import TYPE_CHECKING, Any

import openai
import pytest
import respx

import localwhisper_client
from localwhisper_client import Attempt, LocalWhisper, MissingCloudKey, Policy
from localwhisper_client._http import http
from localwhisper_client.routing.backend import Rules
from localwhisper_client.settings import ClientOptions, RoutingOptions
from tests.client.driving import SHAPES, backend, route
from tests.client.fault_server import TEXT, error, refusing, reset, says, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.driving import Driver
    from tests.client.fault_server import FaultServer

LAN, CLOUD = "http://pc:5000/v1", "https://api.openai.com/v1"
SPEECH = "/audio/transcriptions"
ANSWER = {"text": TEXT}


@pytest.fixture
def wire() -> Iterator[respx.Router]:
    """Answer the SDK's HTTP library without a socket."""
    using = "httpcore2" if http.__name__ == "httpx2" else "httpcore"
    with respx.mock(using=using, assert_all_called=False) as router:
        router.post(LAN + SPEECH).respond(json=ANSWER)
        router.post(CLOUD + SPEECH).respond(json={"text": "from the cloud"})
        router.get(CLOUD + "/models/gpt").respond(json={"object": "model", "id": "gpt"})
        yield router


def sent(wire: respx.Router, index: int = 0) -> Any:
    """Return one of the requests that went out."""
    return wire.calls[index].request


CLOUDS_OWN = {
    "OPENAI_API_KEY": "sk-secret-key",
    "OPENAI_ADMIN_KEY": "secret-admin",
    "OPENAI_ORG_ID": "secret-org",
    "OPENAI_PROJECT_ID": "secret-project",
    "OPENAI_WEBHOOK_SECRET": "secret-webhook",
    "OPENAI_CUSTOM_HEADERS": "X-Gateway: secret-gateway\nAuthorization: Bearer secret-header",
    "AZURE_OPENAI_API_KEY": "secret-azure",
}


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("local_api_key", [None, "lan-key"])
def test_no_key_or_header_of_the_clouds_is_sent_to_the_local_server(
    shape: str, local_api_key: str | None, drive: Driver, wire: respx.Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the environment, the constructor or the call; only the local server's own key is sent."""
    for name, value in CLOUDS_OWN.items():
        monkeypatch.setenv(name, value)
    client = drive.client(
        local_base_url=LAN,
        local_api_key=local_api_key,
        api_key="sk-secret-argument",
        organization="secret-org-argument",
        project="secret-project-argument",
        default_headers={"X-Default": "secret-default"},
        default_query={"default": "secret-query"},
    )
    extra_headers = {
        "Authorization": "Bearer secret-call",
        "cf-aig-authorization": "secret",
        "traceparent": "00-1-2-03",
    }
    assert drive.call(client, shape, extra_headers=extra_headers, extra_query={"q": "secret"}) == TEXT
    request = sent(wire)
    assert "secret" not in repr(request.headers.raw) + str(request.url)
    assert request.headers.get("authorization") == (None if local_api_key is None else "Bearer lan-key")
    assert request.headers["traceparent"] == "00-1-2-03"
    assert request.headers["accept-encoding"] == "identity"


def test_the_cloud_gets_what_the_sdk_sends(drive: Driver, wire: respx.Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key, organisation, headers and query of the constructor, the call and the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-cloud")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    wire.post(LAN + SPEECH).respond(500)
    client = drive.client(local_base_url=LAN, policy="cloud", default_headers={"X-Mine": "1"}, default_query={"v": "2"})
    assert drive.call(client, extra_headers={"X-Call": "3"}) == "from the cloud"
    request = sent(wire, 1)
    assert request.headers["authorization"] == "Bearer sk-cloud"
    assert request.headers["openai-organization"] == "org-1"
    assert (request.headers["x-mine"], request.headers["x-call"], request.url.params["v"]) == ("1", "3", "2")


def test_no_proxy_is_used_for_the_local_server(
    drive: Driver, local_server: FaultServer, cloud: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in the environment would carry the audio off the LAN."""
    monkeypatch.setenv("http_proxy", cloud.url)
    monkeypatch.setenv("ALL_PROXY", cloud.url)
    assert drive.call(drive.client(local_base_url=local_server.url)) == TEXT
    assert not cloud.calls


def test_no_key_is_needed_for_the_local_server(drive: Driver, wire: respx.Router) -> None:
    """Any other call then raises and says which key it needs; nothing is sent."""
    client = drive.client(local_base_url=LAN)
    assert drive.call(client) == TEXT
    assert drive.call(client.with_options(timeout=5)) == TEXT
    for each in (client, client.copy(max_retries=0)):
        with pytest.raises(MissingCloudKey, match="OPENAI_API_KEY"):
            drive.run(each.models.retrieve, "gpt")
    assert len(wire.calls) == 2


def test_without_a_key_policy_cloud_is_an_error_when_the_client_is_made() -> None:
    """As with the SDK."""
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        LocalWhisper(policy="cloud")


def test_a_copy_that_may_not_leave_the_lan_stays(drive: Driver, cloud: FaultServer) -> None:
    """The stricter policy wins, whether it is the copy's or the client's."""
    with refusing() as port:
        strict = drive.client(local_base_url=f"http://127.0.0.1:{port}/v1")
        loose = drive.client(local_base_url=f"http://127.0.0.1:{port}/v1", policy="cloud")
        for client in (strict.with_options(policy="cloud"), loose.with_options(policy="local_only")):
            with pytest.raises(openai.APIConnectionError):
                drive.call(client)
        assert not cloud.calls
        assert drive.call(loose.with_options(timeout=30)) == TEXT


def test_copies_share_the_breaker_unless_they_have_another_server(drive: Driver, wire: respx.Router) -> None:
    """A copy with another address has new breakers, and keeps every argument that was not changed."""
    client = drive.client(local_base_url=LAN, local_api_key="k", policy="wait", connect_timeout=0.5)
    copy = client.with_options(timeout=3)
    assert route(copy).servers is route(client).servers
    assert copy.timeout == 3
    other = client.copy(local_base_url="http://nas/v1", on_event=print)
    settings = route(other).servers.settings
    assert (settings.local_base_urls, settings.local_api_key, settings.connect_timeout) == (
        ("http://nas/v1",),
        "k",
        0.5,
    )
    assert route(other).settings.policy is Policy.WAIT
    assert route(other).announce.callback is print
    assert route(client.copy(local_api_key="new")).servers.settings.local_base_urls == (LAN,)


@pytest.mark.parametrize("own", [{"base_url": "https://mine.example/v1"}, {}])
def test_the_base_url_of_the_cloud(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument, else OpenAI's: never `OPENAI_BASE_URL`, which may be the local server's."""
    monkeypatch.setenv("OPENAI_BASE_URL", LAN)
    client = LocalWhisper(api_key="k", **own)
    assert str(client.base_url).rstrip("/") == own.get("base_url", CLOUD)
    assert route(client).servers.settings.local_base_urls == (LAN,)
    client.close()


def test_translations_and_text_formats_too(drive: Driver, wire: respx.Router) -> None:
    """Both endpoints go to the local server; the answer keeps its type."""
    wire.post(LAN + "/audio/translations").respond(json={"text": "translated"})
    client = drive.client(local_base_url=LAN)

    def translate(file: Any) -> Any:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return client.audio.translations.create(model="whisper-1", file=file)

    assert drive.run(translate, b"x").text == "translated"
    wire.post(LAN + SPEECH).respond(
        text="1\n00:00:00,000 --> 00:00:01,000\n\n\n", content_type="text/plain; charset=utf-8"
    )
    assert drive.call(client, response_format="srt") == "1\n00:00:00,000 --> 00:00:01,000\n\n\n"


def test_an_error_of_the_callers_own_is_raised_as_it_is(drive: Driver, wire: respx.Router) -> None:
    """A file that cannot be read is the caller's error; no other backend is tried."""
    file = io.BytesIO(b"x")
    client = drive.client(local_base_url=LAN, policy="cloud", api_key="k")
    file.close()
    with pytest.raises((ValueError, openai.APIConnectionError)) as raised:
        drive.call(client, file=file)
    assert "closed" in f"{raised.value}{raised.value.__cause__}"
    assert not any(call.request.url.host == "api.openai.com" for call in wire.calls)


def test_when_the_cloud_fails_too_the_error_names_both_backends(drive: Driver, cloud: FaultServer) -> None:
    """It is of the SDK's own class and has both reasons."""
    cloud.behaviour = error(429)
    with refusing() as port:
        client = drive.client(local_base_url=f"http://127.0.0.1:{port}/v1", policy="cloud", max_retries=0)
        with pytest.raises(openai.RateLimitError) as raised:
            drive.call(client)
        assert f"http://127.0.0.1:{port}/v1 (Connect" in str(raised.value)
        assert f"{cloud.url} (status 429)" in str(raised.value)
        cloud.behaviour = lambda conn, _: reset(conn)
        with pytest.raises(openai.APIConnectionError, match=cloud.url):
            drive.call(client)


def test_an_error_of_the_key_function_is_raised_as_it_is(drive: Driver, wire: respx.Router) -> None:
    """So is every error that the SDK raises before it sends anything."""

    def vault() -> str:
        raise MissingCloudKey

    async def async_vault() -> str:
        raise MissingCloudKey

    wire.post(LAN + SPEECH).respond(500)
    api_key = vault if drive.flavour == "sync" else async_vault
    with pytest.raises(MissingCloudKey):
        drive.call(drive.client(local_base_url=LAN, policy="cloud", api_key=api_key))


def test_a_call_without_a_deadline(drive: Driver, wire: respx.Router) -> None:
    """`timeout=None` sets no limit, on the LAN (but for the connection) and in the cloud."""
    wire.post(LAN + SPEECH).respond(500)
    client = drive.client(local_base_url=LAN, policy="cloud", api_key="k", timeout=None, connect_timeout=1)
    assert drive.call(client) == "from the cloud"
    local, cloud = (sent(wire, index).extensions["timeout"] for index in (0, 1))
    assert local == {"connect": 1.0, "read": None, "write": None, "pool": None}
    assert set(cloud.values()) == {None}


def test_the_callers_own_timeouts_are_only_shortened(drive: Driver, wire: respx.Router) -> None:
    """The local server gets half, the cloud the rest; the caller's own connect timeout stays for the cloud."""
    wire.post(LAN + SPEECH).respond(500)
    timeout = openai.Timeout(600, connect=3)
    client = drive.client(local_base_url=LAN, policy="cloud", api_key="k", timeout=timeout, connect_timeout=1)
    drive.call(client)
    local, cloud = (sent(wire, index).extensions["timeout"] for index in (0, 1))
    assert local["connect"] == 1.0
    assert 250 < local["read"] <= 300
    assert cloud["connect"] == 3
    assert 500 < cloud["read"] <= 600


def test_a_callback_that_raises_does_not_fail_the_call(drive: Driver, local_server: FaultServer) -> None:
    """The call goes on."""

    def faulty(event: Any) -> None:
        raise RuntimeError("in the bot's own code")

    assert drive.call(drive.client(local_base_url=local_server.url, on_event=faulty)) == TEXT


def test_events_name_no_credentials(drive: Driver, local_server: FaultServer) -> None:
    """A password in the URL is sent to the server only."""
    client = drive.client(local_base_url=local_server.url.replace("http://", "http://me:pass@"))
    assert drive.call(client) == TEXT
    (event,) = drive.events
    assert event == Attempt(local_server.url, "answered", "", event.seconds, cloud=False)


def test_wait_ends_with_its_deadline(drive: Driver) -> None:
    """With the SDK's timeout error; that it ends at all is what the server's refusals would not bring about."""
    with refusing() as port:
        client = drive.client(local_base_url=f"http://127.0.0.1:{port}/v1", policy="wait", timeout=0.6)
        with pytest.raises(openai.APITimeoutError, match="time is up"):
            drive.call(client)


def test_a_server_that_comes_back_is_used_again(drive: Driver, cloud: FaultServer) -> None:
    """Failures open its breaker, calls fall back; one probe in the background, without audio or key, closes it."""
    with serving(lambda conn, _: reset(conn)) as server:
        client = drive.client(local_base_url=server.url, policy="cloud", rules=Rules(cooldown=0))
        for _ in range(3):
            assert drive.call(client) == TEXT
        assert not backend(client).breaker.allows_calls()
        server.behaviour = says(200, b"application/json", b'{"text": "local"}')
        assert drive.call(client) == TEXT
        assert route(client).servers.all[0].prober.ask(lambda _: None).result(60)
        assert drive.call(client) == "local"
        assert {probe.path for probe in server.probes} == {"/ready"}
        assert "authorization" not in server.probes[0].headers
        assert (len(server.calls), len(cloud.calls)) == (4, 4)


def test_close_closes_the_connections_to_local_servers_too(drive: Driver) -> None:
    """Nothing is left open."""
    client = drive.client(local_base_url=LAN, api_key="k")
    drive.run(client.close)
    assert client.is_closed()
    assert route(client).servers.all[0].client.is_closed()


def test_a_client_that_is_deleted_leaves_no_socket_open(local_server: FaultServer) -> None:
    """As the SDK's own client. Warnings are errors here, that of an unclosed socket too."""
    # Finalizers run in the order of the collector's lists, which a collection in the middle would shuffle.
    gc.collect()
    gc.disable()
    try:
        client = LocalWhisper(local_base_url=local_server.url)
        client.audio.transcriptions.create(model="whisper-1", file=b"x")
        del client
        gc.collect()
    finally:
        gc.enable()


def test_every_argument_of_the_sdk_is_taken() -> None:
    """Type checkers know the names; at run time any other goes to the SDK, which refuses what it does not know."""
    names = {name for name in inspect.signature(openai.OpenAI).parameters if not name.startswith("_")}
    assert names <= set(ClientOptions.__annotations__)
    assert names.isdisjoint(RoutingOptions.__annotations__)
    with pytest.raises(TypeError, match="no_such"):
        LocalWhisper(api_key="k", no_such=1)


PUBLIC = """
    AsyncLocalWhisper Attempt BreakerClosed BreakerOpened BudgetExceeded BudgetReached CloudNotAllowed CloudUnsupported
    ConfigurationError Event Fallback InvalidLocalResponse LanguageDropped LastCall LocalServerTimeout
    LocalServerUnavailable LocalWhisper LocalWhisperError MissingCloudKey Policy __version__ last_call
"""


def test_the_public_surface() -> None:
    """The names that programs may import; all others may change."""
    assert set(localwhisper_client.__all__) == set(PUBLIC.split())
    for name in localwhisper_client.__all__:
        thing = getattr(localwhisper_client, name)
        if inspect.isclass(thing) and issubclass(thing, Exception):
            assert issubclass(thing, openai.OpenAIError)
    with pytest.raises(AttributeError, match="no_such"):
        _ = localwhisper_client.no_such
