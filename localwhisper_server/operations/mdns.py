"""Says on the network that a server is here, by mDNS, so that clients with `LOCALWHISPER_BASE_URL=auto` find it."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Any

from localwhisper_client._version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

logger = logging.getLogger(__name__)

# What `localwhisper_client.lan.discovery` looks for.
SERVICE = "_localwhisper._tcp.local."


def own_addresses() -> list[str]:
    """Return the addresses of this machine's interfaces, without those of the loopback.

    Raises:
        ModuleNotFoundError: the extra `discovery` is not installed.

    """
    import ifaddr  # noqa: PLC0415 - comes with zeroconf, an extra

    found = [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    return [address for address in found if not ipaddress.ip_address(address).is_loopback]


def reachable_at(host: str, addresses: Sequence[str]) -> list[str]:
    """Return those of a machine's addresses at which a socket bound to `host` is reached; none on the loopback."""
    bound = ipaddress.ip_address(host)
    if bound.is_loopback:
        return []
    if not bound.is_unspecified:
        return [host]
    usable = [address for address in map(ipaddress.ip_address, addresses) if not address.is_link_local]
    # A socket on `::` takes IPv4 as well, on every system that this server runs on.
    return [str(address) for address in usable if bound.version == 6 or address.version == 4]  # noqa: PLR2004 - IP's


def service_info(addresses: Sequence[str], port: int, model: str, hostname: str, *, tls: bool) -> Any:
    """Return the record that is announced; `tls`: clients are to say https."""
    from zeroconf import ServiceInfo  # noqa: PLC0415 - an extra

    name = hostname.partition(".")[0] or "localwhisper"
    return ServiceInfo(
        SERVICE,
        # A dot would end the label, and 63 bytes are all it may have.
        f"{name[:50]}-{port}.{SERVICE}",
        port=port,
        parsed_addresses=list(addresses),
        properties={"path": "/v1", "version": __version__, "model": model, "scheme": "https" if tls else "http"},
        server=f"{name[:50]}.local.",
    )


@contextlib.asynccontextmanager
async def announced(
    host: str,
    port: int,
    model: str,
    *,
    tls: bool = False,
    addresses: Sequence[str] | None = None,
    interfaces: Sequence[str] | None = None,
) -> AsyncIterator[None]:
    """Announce a server that listens on `host` while the block lasts. What prevents it is logged, never raised.

    `tls`: it has a certificate. `addresses` are this machine's and `interfaces` those to speak on; by default all
    there are.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            from zeroconf import Error, InterfaceChoice  # noqa: PLC0415 - an extra
            from zeroconf.asyncio import AsyncZeroconf  # noqa: PLC0415 - the same

            known = own_addresses() if addresses is None else addresses
        except ModuleNotFoundError as missing:
            logger.warning(
                "not announced: %s is missing. Install it with: pip install 'localwhisper-lan[discovery]'", missing.name
            )
            yield
            return
        reached = reachable_at(host, known)
        if not reached:
            logger.warning("not announced: nobody else can reach %s. Listen on the network with --host 0.0.0.0", host)
            yield
            return
        try:
            network = AsyncZeroconf(interfaces=list(interfaces) if interfaces else InterfaceChoice.All)
            stack.push_async_callback(network.async_close)
            info = service_info(reached, port, model, socket.gethostname(), tls=tls)
            await network.async_register_service(info, allow_name_change=True)
            stack.push_async_callback(network.async_unregister_all_services)
            logger.info("announced as %s at %s", info.name, ", ".join(reached))
        except (OSError, Error) as failure:
            logger.warning("not announced: %s", repr(failure))
        yield
