from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localwhisper_client.shared.lan_ranges import host_of, on_lan, parse_address, parse_network


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
        *((text, None) for text in ("", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "localhost")),
    ],
)
def test_addresses_as_headers_write_them(text: str, address: str | None) -> None:
    """With brackets, ports and zones; an IPv4 address that is mapped into IPv6 is the IPv4 address."""
    assert parse_address(text) == (address and ip_address(address))


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
    """A single address is a range, too; a mapped range is the range of IPv4."""
    assert parse_network(text) == ip_network(expected)


@pytest.mark.parametrize("text", ["", "lan", "10.0.0.1/8", "10.0.0.0/33"])
def test_a_malformed_range_is_refused(text: str) -> None:
    """It might allow other addresses than the user meant."""
    with pytest.raises(ValueError, match=r"."):
        parse_network(text)


HERE = """
    127.0.0.1 127.9.9.9 ::1 ::ffff:127.0.0.1 169.254.7.7 fe80::1%eth0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.0.9
    ::ffff:192.168.0.9 fd12:3456::1
"""
ELSEWHERE = """
    172.32.0.1 192.169.0.1 100.64.0.1 8.8.8.8 ::ffff:8.8.8.8 2001:4860:4860::8888 0.0.0.0 :: 198.18.0.1 192.0.2.1
    240.0.0.1
"""


def test_the_lan() -> None:
    """The LAN is loopback, link-local and private ranges, and no range reserved for another use."""
    for text in (HERE + ELSEWHERE).split():
        address = parse_address(text)
        assert address is not None
        assert on_lan(address) == (text in HERE.split()), text


def test_one_host() -> None:
    """The 2^64 addresses of IPv6 that one host has count as one host."""
    assert host_of(ip_address("192.168.1.5")) != host_of(ip_address("192.168.1.6"))
    assert host_of(ip_address("fd00::1")) == host_of(ip_address("fd00::ffff:2"))
    assert host_of(ip_address("fd00::1")) != host_of(ip_address("fd00:0:0:1::1"))


@given(st.integers(0, 2**32 - 1), st.integers(0, 65535))
def test_every_form_of_an_ipv4_address_is_the_same_address(number: int, port: int) -> None:
    """Plain, with a port, and mapped into IPv6."""
    address = ip_address(number)
    assert parse_address(str(address)) == address
    assert parse_address(f"{address}:{port}") == address
    assert parse_address(f"[::ffff:{address}]:{port}") == address
