from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from localwhisper_server import server
from localwhisper_server.api.access_control import Rules
from localwhisper_server.settings import Settings, written

if TYPE_CHECKING:
    from pathlib import Path


def test_settings_become_rules(tmp_path: Path) -> None:
    """Commas separate lists; keys come from both places, or the server does not start; its own names are added."""
    with pytest.raises(server.Misconfigured, match="--api-key-file"):
        server.access_rules(Settings(api_key_file=tmp_path / "none"), ())
    file = tmp_path / "keys"
    file.write_text("three\n")
    given: dict[str, Any] = {
        "api_key": "one, two",
        "api_key_file": file,
        "allow_from": "192.168.1.0/24,fd00::/8",
        "trusted_proxy": "127.0.0.1",
        "allow_host": "PC.example.org",
        "cors_origin": "https://App.example.org/",
        "min_upload_rate": 10,
        "upload_grace": 3,
        "max_per_address": 5,
    }
    rules = server.access_rules(Settings(**given), server.own_names())
    limits = server.request_limits(Settings(**given))
    assert rules.keys == ("one", "two", "three")
    assert [str(network) for network in rules.allow_from] == ["192.168.1.0/24", "fd00::/8"]
    assert [str(network) for network in rules.trusted_proxies] == ["127.0.0.1/32"]
    assert rules.hosts == ("pc.example.org", *server.own_names())
    assert rules.origins == ("https://app.example.org",)
    assert (limits.min_rate, limits.grace, limits.per_address) == (10, 3, 5)
    assert socket.gethostname().lower() in rules.hosts


def test_lists_in_the_environment_and_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas separate their items in both; an option can also be given twice."""
    from pydantic_settings import CliApp

    line = CliApp.run(Settings, cli_args=["--api-key", "a", "--api-key=b,c", "--allow-from", "10.0.0.0/8"])
    monkeypatch.setenv("LOCALWHISPER_SERVER_API_KEY", "a,b,c")
    monkeypatch.setenv("LOCALWHISPER_SERVER_ALLOW_FROM", "10.0.0.0/8")
    assert Settings().keys() == line.keys() == ("a", "b", "c")
    assert Settings().allow_from == line.allow_from


def test_the_default_is_this_machine_and_the_lan() -> None:
    """No key, no other names, no pages and no upstream; addresses outside of the LAN are refused."""
    settings = Settings()
    rules = server.access_rules(settings, ())
    assert (settings.host, settings.upstream) == ("127.0.0.1", None)
    assert rules.allow_from == Rules().allow_from
    assert [*rules.keys, *rules.hosts, *rules.origins, *rules.trusted_proxies] == []


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"api_key": "one,two", "allow_from": "10.0.0.0/8,fd00::/8"},
        {"cors_origin": "*", "certfile": "chain.pem", "max_wait": 2.5},
    ],
)
def test_settings_survive_the_environment(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's settings file holds them in that form."""
    settings = Settings(**given)
    for name in Settings.model_fields:
        monkeypatch.setenv(f"LOCALWHISPER_SERVER_{name.upper()}", written(getattr(settings, name)))
    assert Settings() == settings
    assert written(True) == "true"  # noqa: FBT003 - how a flag is written


@pytest.mark.parametrize(
    "given",
    [
        {"allow_from": 5},
        {"allow_from": "the LAN server"},
        {"trusted_proxy": "10.0.0.1/8"},
        {"upstream": "api.openai.com"},
        {"upstream": "ftp://api.openai.com"},
        {"upstream": "https://"},
        {"upstream": "https://api.openai.com/v1?x=1"},
        {"keyfile": "key.pem"},
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any]) -> None:
    """They are refused at the start."""
    with pytest.raises(ValueError, match="1 validation error"):
        Settings(**given)
