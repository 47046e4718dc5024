"""Addresses: which are in the house, and whose a request is when proxies stand between. Pure; never an exception.

An IPv4 address that came over an IPv6 socket (`::ffff:192.168.1.5`) is the IPv4 address.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# This machine is always let in: whoever can run a program here needs no network.
LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
# Link-local (RFC 3927, RFC 4291), private (RFC 1918) and unique local (RFC 4193) ranges. Not `is_private`, which takes
# in documentation and benchmarking ranges, nor 100.64.0.0/10, in which a provider's other customers may be.
HOUSE: tuple[Network, ...] = tuple(
    map(ip_network, ("169.254.0.0/16", "fe80::/10", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
# One host has a whole /64 of IPv6 addresses to call from.
PREFIX_OF_A_HOST = 64


def parse_address(text: str) -> Address | None:
    """Return the address that `text` writes, with or without brackets, a port and a zone; None if it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return _plain(address)


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


def within(address: Address, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of the ranges."""
    return any(address in network for network in networks)


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


def _plain(address: Address) -> Address:
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address
