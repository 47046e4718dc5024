from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from localwhisper_client import ConfigurationError, LocalWhisper
from localwhisper_client.lan import discovery
from localwhisper_client.lan.discovery import PAUSE, Discovery, Found
from localwhisper_server.operations import mdns
from localwhisper_server.operations.host import interface_addresses

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

zeroconf = pytest.importorskip("zeroconf")
LOOPBACK = ["127.0.0.1"]


@contextlib.contextmanager
def announcing(*where: Any, **options: Any) -> Iterator[None]:
    """Announce a server as the server does, on the loopback alone."""
    up, down = threading.Event(), threading.Event()

    async def speak() -> None:
        async with mdns.announced(*where, interfaces=LOOPBACK, **options):
            up.set()
            await asyncio.to_thread(down.wait)

    thread = threading.Thread(target=asyncio.run, args=(speak(),))
    thread.start()
    try:
        assert up.wait(60)
        yield
    finally:
        down.set()
        thread.join()


def test_a_server_that_announces_itself_is_found_until_it_stops() -> None:
    """By real multicast on the loopback: address, port, path, version and model."""
    with announcing("0.0.0.0", 5999, "base", addresses=["192.168.7.7"]):
        (found,) = discovery.browse(60, interfaces=LOOPBACK)
        assert found.urls == ("http://192.168.7.7:5999/v1",)
        assert found.model == "base"
        assert found.version
        assert found.name.endswith("-5999")
    assert discovery.browse(0.3, interfaces=LOOPBACK) == ()


def test_everyone_is_waited_for() -> None:
    """Not only the first; one with a certificate is found as https. A slow machine gets more time to find both."""
    plain = announcing("0.0.0.0", 5997, "a", addresses=["10.0.0.1"])
    with plain, announcing("10.0.0.2", 5998, "b", addresses=[], tls=True):
        for seconds in (1.5, 5.0, 30.0):
            if len(found := discovery.browse(seconds, everyone=True, interfaces=LOOPBACK)) == 2:
                break
    parts = {each.model: urlsplit(each.urls[-1]) for each in found}
    assert (parts["a"].scheme, parts["a"].port) == ("http", 5997)
    assert (parts["b"].scheme, parts["b"].port) == ("https", 5998)


def record(*addresses: str, **properties: str) -> Any:
    """Return what zeroconf makes of an announcement."""
    return SimpleNamespace(
        name=f"pc.{discovery.SERVICE}",
        port=5000,
        properties={key.encode(): value.encode() for key, value in properties.items()},
        parsed_addresses=lambda: list(addresses),
        server="pc.local.",
    )


@pytest.mark.parametrize(
    ("info", "urls"),
    [
        (record("192.168.1.2"), ("http://192.168.1.2:5000/v1",)),
        (record("fd00::2", path="/"), ("http://[fd00::2]:5000",)),
        (record("8.8.8.8", "10.0.0.1"), ("http://10.0.0.1:5000/v1",)),
        (record("8.8.8.8", "2001:4860::1", "fe80::1"), None),
        (record("198.18.0.1", "192.0.2.1", "0.0.0.0", "::", "100.64.0.1", "240.0.0.1"), None),
        (record("169.254.7.7"), ("http://169.254.7.7:5000/v1",)),
        (record("10.0.0.1", path="@evil.example/"), None),
        (record("10.0.0.1", scheme="ftp"), ("http://10.0.0.1:5000/v1",)),
        (record("10.0.0.1", scheme="https"), ("https://pc.local:5000/v1", "https://10.0.0.1:5000/v1")),
        (record("8.8.8.8", scheme="https"), None),
    ],
)
def test_only_addresses_of_the_lan_are_believed(info: Any, urls: Any) -> None:
    """A server that announces an address on the internet is sent no audio."""
    found = discovery._found(info)
    assert (found and found.urls) == urls


def test_the_first_address_that_answers() -> None:
    """One for each server; a server none of whose addresses answers is not there."""
    asked = []

    def healthy(url: str, _: float) -> tuple[bool, str]:
        asked.append(url)
        return "good" in url, ""

    found = [Found("a", ("http://bad/v1", "http://good/v1", "http://good2/v1")), Found("b", ("http://bad2/v1",))]
    assert discovery.reachable(found, healthy) == ("http://good/v1",)
    assert asked == ["http://bad/health", "http://good/health", "http://bad2/health"]


class Network:
    """A network whose servers move."""

    def __init__(self, *urls: str) -> None:
        self.there = urls
        self.searches = 0
        self.now = 0.0

    def find(self) -> tuple[str, ...]:
        self.searches += 1
        return self.there

    def finder(self, path: Path | None) -> Discovery:
        return Discovery(path, self.find, lambda: self.now)


def test_the_answer_is_remembered_until_the_server_has_moved(tmp_path: Path) -> None:
    """One search, of which the next start needs none; after `forget` there is another, and its answer is written."""
    network, path = Network("http://10.0.0.1:5000/v1"), tmp_path / "state" / "discovered.json"
    first = network.finder(path)
    assert first.urls() == first.urls() == network.there
    finder = network.finder(path)
    assert finder.urls() == network.there
    assert network.searches == 1
    network.there = ("http://10.0.0.9:5000/v1",)
    finder.forget()
    network.now = PAUSE
    assert finder.urls() == network.there
    assert json.loads(path.read_text())["urls"] == list(network.there)


def test_while_no_server_runs_there_is_one_search_in_half_a_minute() -> None:
    """The last answer stays meanwhile: the server may come back at its address."""
    network = Network("http://10.0.0.1:5000/v1")
    finder = network.finder(None)
    before = finder.urls()
    network.there = ()
    network.now += PAUSE
    for _ in range(5):
        finder.forget()
        assert finder.urls() == before
    assert network.searches == 2
    network.now += PAUSE
    assert finder.urls() == before
    assert network.searches == 3


BROKEN = ("", "{}", "[]", '{"urls": 3}', '{"urls": [1, null]}', '{"urls": ["http://["]}', "\x00")


@pytest.mark.parametrize("content", [*BROKEN, '{"urls": ["http://8.8.8.8"]}'])
def test_a_broken_file_is_ignored(content: str, tmp_path: Path) -> None:
    """The network is searched instead."""
    path = tmp_path / "discovered.json"
    path.write_text(content)
    assert Network("http://10.0.0.1:5000/v1").finder(path).urls() == ("http://10.0.0.1:5000/v1",)


def test_no_network_and_no_disk_are_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each is logged; nothing is known then, or known until the process ends."""

    def unplugged() -> tuple[str, ...]:
        raise OSError("unplugged")

    assert Discovery(None, unplugged).urls() == ()
    (tmp_path / "file").touch()
    network = Network("http://10.0.0.1:5000/v1")
    assert network.finder(tmp_path / "file" / "discovered.json").urls() == network.there
    assert "unplugged" in caplog.text
    assert "remember" in caplog.text


def test_the_clients_of_a_process_share_what_they_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Many clients make one search."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    discovery.shared.cache_clear()
    assert discovery.shared() is discovery.shared()


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that installs it, when the client is made and not at the first voice message."""
    discovery.shared.cache_clear()
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with pytest.raises(ConfigurationError, match=r"'\.\[discovery\]'"):
        LocalWhisper(local_base_url="auto")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", []),
        ("::1", []),
        ("192.168.1.2", ["192.168.1.2"]),
        ("0.0.0.0", ["192.168.1.2", "10.0.0.1"]),
        ("::", ["192.168.1.2", "fd00::2", "10.0.0.1"]),
    ],
)
def test_what_is_announced_is_where_it_listens(host: str, expected: list[str]) -> None:
    """Never the loopback, never an address of the link alone."""
    assert mdns.reachable_at(host, ["192.168.1.2", "fd00::2", "10.0.0.1", "169.254.1.1", "fe80::1"]) == expected


def test_the_machines_own_addresses_are_announced_without_the_loopback() -> None:
    """Those of the interfaces, whatever this machine has."""
    assert "127.0.0.1" in (found := interface_addresses())
    assert not {"127.0.0.1", "::1"} & set(mdns.reachable_at("::", found))


def test_what_cannot_be_announced_is_said_and_serves_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A loopback host, no zeroconf, no network."""
    caplog.set_level(logging.WARNING)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no multicast")

    with announcing("127.0.0.1", 5999, "base"):
        pass
    with monkeypatch.context() as patch:
        patch.setattr("zeroconf.asyncio.AsyncZeroconf", refuse)
        with announcing("10.0.0.1", 5999, "base"):
            pass
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with announcing("10.0.0.1", 5999, "base"):
        pass
    words = [record.getMessage() for record in caplog.records if record.name == mdns.logger.name]
    assert len(words) == 3
    for word, expected in zip(words, ["--host 0.0.0.0", "no multicast", "'.[discovery]'"], strict=True):
        assert expected in word


def test_zeroconf_is_not_imported_before_it_is_needed() -> None:
    """A client with an address does without it."""
    code = "import sys, localwhisper_client.lan.discovery; sys.exit('zeroconf' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
