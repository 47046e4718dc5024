from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from localwhisper_client.errors import ConfigurationError
from localwhisper_client.routing.policy import Policy, strictest
from localwhisper_client.settings import Settings, health_url, is_openai, ledger_path, parse_policy, state_folder


@pytest.mark.parametrize(
    ("environ", "local_base_urls"),
    [
        ({}, ("http://localhost:5000/v1",)),
        ({"OPENAI_BASE_URL": "https://api.openai.com/v1"}, ("http://localhost:5000/v1",)),
        ({"OPENAI_BASE_URL": "https://eu.api.openai.com/v1"}, ("http://localhost:5000/v1",)),
        ({"OPENAI_BASE_URL": "https://me.openai.azure.com/openai/v1"}, ("http://localhost:5000/v1",)),
        ({"OPENAI_BASE_URL": "http://pc:5000/v1/"}, ("http://pc:5000/v1",)),
        ({"OPENAI_BASE_URL": "http://x/v1", "LOCALWHISPER_BASE_URL": "http://y/v1"}, ("http://y/v1",)),
        ({"LOCALWHISPER_BASE_URL": "http://pc:5000/v1, http://nas/v1,"}, ("http://pc:5000/v1", "http://nas/v1")),
        ({"LOCALWHISPER_BASE_URL": "  "}, ("http://localhost:5000/v1",)),
        # Certificates are checked by the scheme, so it is spelled in one way.
        ({"LOCALWHISPER_BASE_URL": "HTTPS://a:B@PC.lan:5000/V1/"}, ("https://a:B@pc.lan:5000/V1",)),
        ({"OPENAI_BASE_URL": "Https://[FE80::1]/v1"}, ("https://[fe80::1]/v1",)),
    ],
)
def test_where_the_lan_is(environ: dict[str, str], local_base_urls: tuple[str, ...]) -> None:
    """`LOCALWHISPER_BASE_URL`, else `OPENAI_BASE_URL` where it points away from OpenAI, else this machine."""
    assert Settings.load(environ).local_base_urls == local_base_urls


@pytest.mark.parametrize(
    ("environ", "named", "gateway"),
    [
        ({}, True, None),
        ({"LOCALWHISPER_BASE_URL": "http://pc/v1"}, True, None),
        ({"OPENAI_BASE_URL": "http://pc/v1/"}, False, None),
        ({"OPENAI_BASE_URL": "http://pc.local/v1", "LOCALWHISPER_BASE_URL": "http://pc.local/v1"}, True, None),
        ({"OPENAI_BASE_URL": "http://pc:4000", "LOCALWHISPER_BASE_URL": "http://pc:5000"}, True, "http://pc:4000"),
        ({"OPENAI_BASE_URL": "https://gw.example/v1"}, False, "https://gw.example/v1"),
        ({"OPENAI_BASE_URL": "https://eu.api.openai.com/v1"}, True, "https://eu.api.openai.com/v1"),
    ],
)
def test_what_openai_base_url_is(environ: dict[str, str], named: bool, gateway: str | None) -> None:  # noqa: FBT001 - pytest passes it by name
    """It names no LAN server by itself; where it is not the LAN server's, the rest of the SDK goes there."""
    settings = Settings.load(environ)
    assert (settings.named, settings.gateway) == (named, gateway)
    assert settings.cloud_url == "https://api.openai.com/v1"


def test_everything_else_from_the_environment() -> None:
    """And arguments win over it."""
    environ = {
        "LOCALWHISPER_BASE_URL": "http://pc/v1",
        "LOCALWHISPER_API_KEY": "lan",
        "LOCALWHISPER_POLICY": " Cloud ",
        "LOCALWHISPER_CLOUD_BASE_URL": "https://proxy.example/v1/",
    }
    settings = Settings.load(environ)
    assert settings == Settings(("http://pc/v1",), "lan", Policy.CLOUD, cloud_url="https://proxy.example/v1")
    assert "lan" not in repr(settings)
    settings = Settings.load(environ, local_base_url="http://nas/v1", local_api_key="other", connect_timeout=0.5)
    assert (settings.local_base_urls, settings.local_api_key, settings.connect_timeout) == (
        ("http://nas/v1",),
        "other",
        0.5,
    )


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"LOCALWHISPER_BASE_URL": "pc:5000"}, "LOCALWHISPER_BASE_URL"),
        ({"LOCALWHISPER_BASE_URL": "http://"}, "not a URL"),
        ({"LOCALWHISPER_BASE_URL": "http://pc:port/v1"}, "not a URL"),
        ({"LOCALWHISPER_BASE_URL": "http://[::1/v1"}, "not a URL"),
        ({"LOCALWHISPER_BASE_URL": ","}, "names no server"),
        ({"LOCALWHISPER_CLOUD_BASE_URL": "auto"}, "not a URL"),
        ({"LOCALWHISPER_CLOUD_BUDGET": "5"}, "5.00/month"),
        ({"LOCALWHISPER_CLOUD_BUDGET": "five/month"}, "5.00/month"),
        ({"LOCALWHISPER_CLOUD_BUDGET": "-1/day"}, "5.00/month"),
        ({"LOCALWHISPER_CLOUD_BUDGET": "1/week"}, "5.00/month"),
        ({"LOCALWHISPER_CLOUD_BUDGET": "1/day", "LOCALWHISPER_LEDGER": "0"}, "needs a ledger"),
        ({"LOCALWHISPER_BASE_URL": "https://api.openai.com/v1"}, "is the cloud"),
        ({"LOCALWHISPER_BASE_URL": "http://a/v1", "LOCALWHISPER_CLOUD_BASE_URL": "http://a/v1"}, "is the cloud"),
        ({"LOCALWHISPER_BASE_URL": "HTTP://API.openai.com/v1"}, "is the cloud"),
        ({"LOCALWHISPER_BASE_URL": "http://A/v1", "LOCALWHISPER_CLOUD_BASE_URL": "HTTP://a/v1/"}, "is the cloud"),
        ({"LOCALWHISPER_CLOUD_BASE_URL": "nonsense"}, "LOCALWHISPER_CLOUD_BASE_URL"),
        ({"LOCALWHISPER_POLICY": "sometimes"}, "local_only, wait, cloud"),
    ],
)
def test_what_cannot_be_used_is_said(environ: dict[str, str], says: str) -> None:
    """The message names the variable or says what would do; nothing is guessed."""
    with pytest.raises(ConfigurationError, match=says):
        Settings.load(environ)


def test_an_option_that_cannot_be_used_is_said() -> None:
    """Of a client and of a copy, when it is made and not at the first call."""
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("connect_timeout", {"connect_timeout": 0}),
        ("policy", {"policy": "perhaps"}),
        ("is the cloud", {"local_base_url": "https://api.openai.com/v1"}),
    ]
    for says, options in wrong:
        for load in (Settings.load({}).changed, functools.partial(Settings.load, {})):
            with pytest.raises(ConfigurationError, match=says):
                load(**options)


def test_health_is_beside_v1() -> None:
    """Under the base URL's parent when that ends in /v1."""
    for base in ("http://pc:5000/v1", "http://pc:5000/v1/", "http://pc:5000"):
        assert health_url(base) == "http://pc:5000/health"
    assert health_url("http://gw/whisper/v1", "/ready") == "http://gw/whisper/ready"


def test_what_is_openai() -> None:
    """By host, not by what the URL looks like."""
    assert is_openai("https://API.openai.com./v1")
    assert is_openai("https://api\u3002openai\u3002com/v1")  # looked up under the same name
    assert is_openai("https://\uff41pi.openai.com/v1")
    assert not is_openai("http://[broken")
    assert not is_openai("http://openai.com.evil.example/v1")
    assert not is_openai("http://pc/api.openai.com")


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ([], Policy.LOCAL_ONLY),
        ([None, None], Policy.LOCAL_ONLY),
        ([None, Policy.CLOUD], Policy.CLOUD),
        ([Policy.CLOUD, Policy.WAIT], Policy.WAIT),
        ([Policy.WAIT, Policy.LOCAL_ONLY, Policy.CLOUD], Policy.LOCAL_ONLY),
    ],
)
def test_the_stricter_policy_wins(given: list[Policy | None], policy: Policy) -> None:
    """`None` sets no policy."""
    assert strictest(given) is policy
    assert [p for p in Policy if p.leaves_lan] == [Policy.CLOUD]
    assert parse_policy("x", None) is None


DEFAULT_LEDGER = Path("/home/me/.local/state/localwhisper/ledger.sqlite3")


@pytest.mark.parametrize(
    ("values", "path"),
    [
        (("1", "yes", ""), DEFAULT_LEDGER),
        (("/x/y",), Path("/x/y")),
        (("off", "OFF", "0", "false", "no", " No "), None),
    ],
)
def test_where_the_ledger_is(values: tuple[str, ...], path: Path | None) -> None:
    """In the usual place, at a path, or nowhere, by any of the usual words."""
    assert {ledger_path(value, {"HOME": "/home/me"}) for value in values} == {path}


@pytest.mark.parametrize(
    ("environ", "platform", "path"),
    [
        ({"HOME": "/home/me"}, "linux", "/home/me/.local/state/localwhisper"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "/state"}, "linux", "/state/localwhisper"),
        ({"HOME": "/home/me", "XDG_STATE_HOME": "state"}, "linux", "/home/me/.local/state/localwhisper"),
        ({"HOME": "/Users/me"}, "darwin", "/Users/me/Library/Application Support/localwhisper"),
        ({"USERPROFILE": "/me"}, "win32", "/me/AppData/Local/localwhisper"),
        ({"USERPROFILE": "/me", "LOCALAPPDATA": "/data"}, "win32", "/data/localwhisper"),
    ],
)
def test_the_folder_for_state(environ: dict[str, str], platform: str, path: str) -> None:
    """Each system has its own convention."""
    assert state_folder(environ, platform) == Path(path)
