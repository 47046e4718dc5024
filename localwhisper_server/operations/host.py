"""What this machine is: its addresses and names, and whether it is WSL; and a server's socket and URL."""

import socket
from collections.abc import Callable
from pathlib import Path

import ifaddr

MAX_TEXT = 1 << 20


def read_text(path: str) -> str | None:
    """Return the beginning of a text file, 1 MiB at most; None if it cannot be read."""
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as stream:
            return stream.read(MAX_TEXT)
    except OSError:
        return None


def is_wsl(read: Callable[[str], str | None] = read_text) -> bool:
    """Return whether this is Linux in WSL, by the version of its kernel."""
    return "microsoft" in (read("/proc/version") or "").lower()


def interface_addresses() -> list[str]:
    """Return the addresses of all network interfaces, the loopback among them."""
    ips = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    return [ip if isinstance(ip, str) else ip[0] for ip in ips]


def outbound_address() -> str:
    """Return the IPv4 address that this machine sends from; 127.0.0.1 if it has no network."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Connecting a datagram socket sends nothing. The address is reserved for documentation (RFC 5737).
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def listen(host: str, port: int) -> socket.socket:
    """Bind the listening socket. This comes before all that is slow, so that a busy port is reported at once.

    Raises:
        OSError: the address is in use or not this machine's.

    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        # After a restart, do not wait until the connections of the old process time out.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening


def own_names() -> tuple[str, ...]:
    """Return this machine's name, and its full name if that is another."""
    return tuple(dict.fromkeys(name.lower() for name in (socket.gethostname(), socket.getfqdn())))


def server_url(host: str, port: int, *, tls: bool = False) -> str:
    """Return the URL of a server, without /v1."""
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
