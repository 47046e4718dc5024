"""Addresses: which are let in, and whose a request is when proxies stand between. Pure; never an exception.

An IPv4 address that came over an IPv6 socket (`::ffff:192.168.1.5`) is the IPv4 address.
"""

from collections.abc import Sequence
from ipaddress import IPv6Address, IPv6Network, ip_network

from localwhisper_client.shared.lan_ranges import LOOPBACK, Address, Network, parse_address, within
from localwhisper_client.shared.lan_ranges import RANGES as LAN

__all__ = [
    "LAN",
    "LOOPBACK",
    "Address",
    "Network",
    "caller",
    "of_one_host",
    "parse_address",
    "parse_network",
    "within",
]

# One host has a whole /64 of IPv6 addresses to call from.
PREFIX_OF_A_HOST = 64


def parse_network(text: str) -> Network:
    """Return the range that `text` writes: `192.168.0.0/16`, or a single address.

    Raises:
        ValueError: it is no range; host bits that are set are one, too.

    """
    network = ip_network(text.strip())
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:  # noqa: PLR2004 - ::ffff:0:0/96, RFC 4291
        return ip_network(f"{mapped}/{network.prefixlen - 96}")
    return network


def caller(peer: str | None, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> Address | None:
    """Return whose request this is, None where that cannot be known.

    `peer` is the other end of the connection, `forwarded_for` the values of the `X-Forwarded-For` headers. Each proxy
    appends whom it heard from, so the list is read from its end, and only as far as those who wrote it are trusted:
    the rest is whatever the caller made up.
    """
    address = parse_address(peer or "")
    hops = [hop for value in forwarded_for for hop in value.split(",") if hop.strip()]
    while hops and address is not None and within(address, trusted):
        address = parse_address(hops.pop())
    return address


def of_one_host(address: Address) -> str:
    """Return what counts as one caller: the address, of IPv6 its first 64 bits."""
    if isinstance(address, IPv6Address):
        return str(ip_network((address, PREFIX_OF_A_HOST), strict=False))
    return str(address)
