"""What the LAN is: the ranges of its addresses and the endings of its names. Pure; client and server share it.

An IPv4 address that came over an IPv6 socket (`::ffff:192.168.1.5`) is the IPv4 address.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# This machine.
LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
# Link-local (RFC 3927, RFC 4291), private (RFC 1918) and unique local (RFC 4193) ranges. Not `is_private`, which takes
# in documentation and benchmarking ranges, nor 100.64.0.0/10, in which a provider's other customers may be.
RANGES: tuple[Network, ...] = tuple(
    map(ip_network, ("169.254.0.0/16", "fe80::/10", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
# Names that no public DNS server can point anywhere: RFC 6761, RFC 6762, RFC 8375, ICANN's .internal, and those of
# routers.
SUFFIXES = (".localhost", ".local", ".lan", ".home", ".home.arpa", ".internal")
MDNS = ".local"


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
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def parse_network(text: str) -> Network:
    """Return the range that `text` writes: `192.168.0.0/16`, or a single address.

    Raises:
        ValueError: it is no range, or an address within one (`192.168.0.5/16`).

    """
    network = ip_network(text.strip())
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:  # noqa: PLR2004 - ::ffff:0:0/96, RFC 4291
        return ip_network(f"{mapped}/{network.prefixlen - 96}")
    return network


def host_of(address: Address) -> str:
    """Return what stands for one host in a count: its IPv4 address, or the /64 of IPv6 that a host has to itself."""
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return str(address)


def within(address: Address, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of the ranges."""
    return any(address in network for network in networks)


def on_lan(address: Address) -> bool:
    """Whether an address is this machine's or one of the LAN's."""
    return within(address, (*LOOPBACK, *RANGES))


def settled(host: str) -> bool | None:
    """Whether a host is on the LAN, as far as its spelling tells; None where its name must be looked up."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = parse_address(name)
    return None if address is None else on_lan(address)


def resolved(host: str, addresses: Iterable[Address]) -> bool:
    """Whether a name with these addresses is on the LAN: all of them must be, for any of them may be used.

    A `.local` name is answered by the machine itself, on the same link; beside its private addresses it may give a
    global one of IPv6.
    """
    here = [on_lan(address) for address in addresses]
    return any(here) if host.lower().rstrip(".").endswith(MDNS) else bool(here) and all(here)


def named_like_one(host: str) -> bool:
    """Whether a host looks like one of the LAN, without a look-up: a single label or an ending that only a LAN has."""
    name = host.lower().rstrip(".")
    here = settled(name)
    return here if here is not None else "." not in name or name.endswith(SUFFIXES)
