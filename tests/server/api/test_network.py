from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_client.shared import lan_ranges
from localwhisper_server.api import network, origin


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.168.1.5", "192.168.1.5"),
        (" 192.168.1.5 ", "192.168.1.5"),
        ("192.168.1.5:8080", "192.168.1.5"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[::1]:5000", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:1", "fe80::1"),
        ("::ffff:192.168.1.5", "192.168.1.5"),
        ("[::ffff:c0a8:105]:9", "192.168.1.5"),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("1.2.3", None),
        ("1.2.3.4.5", None),
        ("localhost", None),
    ],
)
def test_addresses_as_headers_write_them(text: str, address: str | None) -> None:
    """With brackets, ports and zones; an IPv4 address in IPv6's clothes is the IPv4 address."""
    assert network.parse_address(text) == (address and ip_address(address))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("203.0.113.9", "203.0.113.9/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::/0", "::/0"),
    ],
)
def test_ranges(text: str, expected: str) -> None:
    """A single address is a range, too; mapped ones mean IPv4, as the addresses they are compared with."""
    assert network.parse_network(text) == ip_network(expected)


@pytest.mark.parametrize("text", ["", "lan", "10.0.0.1/8", "10.0.0.0/33"])
def test_what_is_no_range(text: str) -> None:
    """It is refused at the start instead of letting in others than meant."""
    with pytest.raises(ValueError, match=r"."):
        network.parse_network(text)


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("169.254.7.7", True),
        ("fe80::1%eth0", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("172.31.255.255", True),
        ("192.168.0.9", True),
        ("::ffff:192.168.0.9", True),
        ("fd12:3456::1", True),
        ("172.32.0.1", False),
        ("192.169.0.1", False),
        ("100.64.0.1", False),
        ("8.8.8.8", False),
        ("::ffff:8.8.8.8", False),
        ("2001:4860:4860::8888", False),
        ("0.0.0.0", False),
        ("::", False),
        ("198.18.0.1", False),
    ],
)
def test_the_lan(address: str, inside: bool) -> None:  # noqa: FBT001
    """Loopback, link-local and private ranges, and nothing that only sounds private."""
    parsed = network.parse_address(address)
    assert parsed is not None
    assert network.within(parsed, (*network.LOOPBACK, *network.LAN)) == inside
    assert lan_ranges.settled(address) == inside  # the client's discovery goes by the same list


PROXY = [ip_network("10.0.0.0/24"), ip_network("::1/128")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.168.1.5", [], "192.168.1.5"),
        ("192.168.1.5", ["8.8.8.8"], "192.168.1.5"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["8.8.8.8"], "8.8.8.8"),
        ("::1", ["8.8.8.8"], "8.8.8.8"),
        ("::ffff:10.0.0.1", ["[2001:db8::5]:443"], "2001:db8::5"),
        ("10.0.0.1", ["192.168.1.1, 8.8.8.8"], "8.8.8.8"),
        ("10.0.0.1", ["192.168.1.1", "8.8.8.8"], "8.8.8.8"),
        ("10.0.0.1", ["8.8.8.8, 10.0.0.2"], "8.8.8.8"),
        ("10.0.0.1", ["192.168.1.1, 8.8.8.8, 10.0.0.2,"], "8.8.8.8"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["unknown"], None),
        ("10.0.0.1", ["192.168.1.1, garbage"], None),
        (None, ["192.168.1.1"], None),
        ("testclient", [], None),
    ],
)
def test_whose_request_it_is(peer: str | None, forwarded: list[str], expected: str | None) -> None:
    """X-Forwarded-For is read from its end, as far as those who wrote it are trusted; what is unreadable is nobody."""
    assert network.caller(peer, forwarded, PROXY) == (expected and ip_address(expected))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.168.1.5", "192.168.1.5", True),
        ("192.168.1.5", "192.168.1.6", False),
        ("fd00::1", "fd00::ffff:2", True),
        ("fd00::1", "fd00:0:0:1::1", False),
    ],
)
def test_one_host(one: str, other: str, same: bool) -> None:  # noqa: FBT001
    """A host has 2^64 addresses of IPv6 and must not have as many shares."""
    assert (network.of_one_host(ip_address(one)) == network.of_one_host(ip_address(other))) == same


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:5000", True),
        ("192.168.1.5", True),
        ("8.8.8.8", True),
        ("[::1]:5000", True),
        ("[fe80::1%25eth0]", True),
        ("localhost", True),
        ("LOCALHOST:5000", True),
        ("localhost.", True),
        ("pc", True),
        ("My_PC:5000", True),
        ("pc.local", True),
        ("pc.lan:80", True),
        ("pc.home", True),
        ("pc.home.arpa.", True),
        ("pc.internal", True),
        ("pc.example.org", True),
        ("a.dyn.example.net", True),
        ("dyn.example.net", False),
        ("evil.example.com", False),
        ("pc.example.org.evil.com", False),
        ("127.0.0.1.nip.io", False),
        ("notlocal", True),
        ("evil-local.com", False),
        ("example.org", False),
        ("pc:5000:5000", False),
        ("[::1", False),
        ("[evil.com]", False),
        ("a@evil.com", False),
        ("pc local", False),
        ("pc\x00", False),
        ("naïve", False),
        ("", False),
    ],
)
def test_names_of_this_server(host: str, ours: bool) -> None:  # noqa: FBT001
    """Addresses, single labels, the LAN server's suffixes and what is allowed, with any port; all else may be rebound."""
    assert origin.is_ours(host, ("pc.example.org", ".dyn.example.net")) == ours
    assert origin.is_ours(host, ("*",))


@pytest.mark.parametrize(
    ("page", "host", "may"),
    [
        ("http://pc.lan:5000", "pc.lan:5000", True),
        ("http://PC.lan:5000", "pc.LAN:5000", True),
        ("http://pc.lan", "pc.lan", True),
        ("http://pc.lan:80", "pc.lan", True),
        ("https://pc.lan", "pc.lan", True),
        ("http://[::1]:5000", "[::1]:5000", True),
        ("http://pc.lan:3000", "pc.lan:5000", False),
        ("http://other.lan:5000", "pc.lan:5000", False),
        ("https://app.example.org", "pc.lan:5000", True),
        ("HTTPS://app.example.ORG", "pc.lan:5000", True),
        ("http://app.example.org", "pc.lan:5000", False),
        ("https://app.example.org:444", "pc.lan:5000", False),
        ("app://obsidian.md", "pc.lan:5000", True),
        ("app://pc.lan:5000", "pc.lan:5000", False),
        ("null", "pc.lan:5000", False),
        ("null", None, False),
        ("http://pc.lan:5000", None, False),
        ("http://pc.lan:5000/", "pc.lan:5000", False),
        ("", "pc.lan:5000", False),
        ("://", "://", False),
    ],
)
def test_pages_that_may_call(page: str, host: str | None, may: bool) -> None:  # noqa: FBT001
    """Those loaded from here, and those listed, scheme and port included."""
    assert origin.may_call(page, host, ("https://app.example.org", "app://obsidian.md")) == may
    assert origin.may_call(page, host, ("*",))


def test_null_can_be_listed() -> None:
    """Pages from a file have it."""
    assert origin.may_call("null", "pc", ("null",))


@given(st.text(), st.text(), st.lists(st.text()))
def test_no_header_breaks_it(one: str, other: str, several: list[str]) -> None:
    """Whatever a header holds, there is an answer, and never an exception."""
    network.parse_address(one)
    network.caller(one, several, PROXY)
    network.caller("10.0.0.1", several, PROXY)
    origin.split_host(one)
    origin.is_ours(one, (other,))
    origin.may_call(one, other, ())
    origin.may_call(f"http://{one}", other, ())


@given(st.integers(0, 2**32 - 1), st.integers(0, 65535))
def test_every_ipv4_address_is_read_the_same_however_it_comes(number: int, port: int) -> None:
    """Plain, with a port, and mapped into IPv6."""
    address = ip_address(number)
    assert network.parse_address(str(address)) == address
    assert network.parse_address(f"{address}:{port}") == address
    assert network.parse_address(f"[::ffff:{address}]:{port}") == address
    assert origin.is_ours(f"{address}:{port}", ())
