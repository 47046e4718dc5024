"""Announces the server on the network by mDNS, for clients with `LOCALWHISPER_BASE_URL=auto`."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING

from localwhisper_client import __version__
from localwhisper_client.shared import install_command
from localwhisper_server.operations.host import interface_addresses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from zeroconf import ServiceInfo

logger = logging.getLogger(__name__)

# `localwhisper_client.lan.discovery` looks for the same.
SERVICE = "_localwhisper._tcp.local."
# Home Assistant looks for this one; its servers tell everything else themselves.
WYOMING = "_wyoming._tcp.local."


def reachable_at(host: str, addresses: Sequence[str]) -> list[str]:
    """Return those of this machine's `addresses` at which other machines reach a socket that is bound to `host`."""
    bound = ipaddress.ip_address(host)
    if bound.is_loopback:
        return []
    if not bound.is_unspecified:
        return [host]
    usable = [ip for ip in map(ipaddress.ip_address, addresses) if not (ip.is_link_local or ip.is_loopback)]
    # A socket on `::` takes IPv4 as well.
    return [str(address) for address in usable if bound.version == 6 or address.version == 4]  # noqa: PLR2004 - IP's


@contextlib.asynccontextmanager
async def announced(
    host: str,
    port: int,
    model: str,
    *,
    tls: bool = False,
    service: str = SERVICE,
    addresses: Sequence[str] | None = None,
    interfaces: Sequence[str] | None = None,
) -> AsyncIterator[None]:
    """Announce a server that listens on `host` while the block runs. If that is not possible, log why; never raise.

    With `tls`, clients use https. `addresses` are this machine's, and `interfaces` those to announce on; by default all
    that it has.
    """
    async with contextlib.AsyncExitStack() as stack:
        reached = reachable_at(host, interface_addresses() if addresses is None else addresses)
        try:
            if reached:
                facts = {"path": "/v1", "version": __version__, "model": model, "scheme": "https" if tls else "http"}
                info = _described(service, port, reached, facts if service == SERVICE else {})
                await _register(stack, info, interfaces)
            else:
                logger.warning("not announced: other machines cannot reach %s. --host 0.0.0.0 listens on all", host)
        except ModuleNotFoundError as missing:
            needed = install_command("discovery")
            logger.warning("not announced: %s is missing. Install it with: %s", missing.name, needed)
        except Exception as failure:  # noqa: BLE001 - the network's errors and zeroconf's own; no reason to stop
            logger.warning("not announced: %s", repr(failure))
        yield


def _described(service: str, port: int, addresses: Sequence[str], properties: dict[str, str]) -> ServiceInfo:
    from zeroconf import ServiceInfo  # noqa: PLC0415 - an extra

    # A dot would end the label, which may have 63 bytes.
    name = (socket.gethostname().partition(".")[0] or "localwhisper")[:50]
    return ServiceInfo(
        service,
        f"{name}-{port}.{service}",
        port=port,
        parsed_addresses=list(addresses),
        properties=properties,
        server=f"{name}.local.",
    )


async def _register(stack: contextlib.AsyncExitStack, info: ServiceInfo, interfaces: Sequence[str] | None) -> None:
    from zeroconf import InterfaceChoice  # noqa: PLC0415 - an extra
    from zeroconf.asyncio import AsyncZeroconf  # noqa: PLC0415 - the same

    network = AsyncZeroconf(interfaces=list(interfaces) if interfaces else InterfaceChoice.All)
    stack.push_async_callback(network.async_close)
    await network.async_register_service(info, allow_name_change=True)
    stack.push_async_callback(network.async_unregister_all_services)
    logger.info("announced as %s at %s", info.name, ", ".join(info.parsed_addresses()))
