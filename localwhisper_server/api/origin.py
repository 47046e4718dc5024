"""What a browser may be used for: the names this server answers to, and the pages that may call it. Pure.

A web page can post a form to an address on the LAN without asking anybody, and a name of the page's own can be made
to point here (DNS rebinding). Browsers tell both: the page in `Origin`, the name in `Host`. Whatever these headers
hold, it is read without an exception.
"""

import re
from collections.abc import Iterable, Sequence

from localwhisper_client.shared.lan_ranges import SUFFIXES
from localwhisper_server.api.network import parse_address

ANY = "*"

_HOST = re.compile(r"(?P<name>\[[0-9a-z:.%_-]+\]|[^\[\]:/@?#\\,\s]+)(?::(?P<port>\d{1,5})?)?", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9_-]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def split_host(value: str) -> tuple[str, int | None] | None:
    """Return the name, in lower case, and the port of a `Host` header; None where it is malformed."""
    match = _HOST.fullmatch(value.strip())
    if match is None:
        return None
    port = match["port"]
    return match["name"].lower().removesuffix("."), int(port) if port else None


def is_ours(host: str, allowed: Iterable[str]) -> bool:
    """Whether a `Host` header names this server.

    Addresses, single labels and the suffixes of the LAN do; of `allowed`, in lower case, a name means itself,
    `.example.org` all below it, and `*` anything.
    """
    allowed = tuple(allowed)
    if ANY in allowed:
        return True
    split = split_host(host)
    if split is None:
        return False
    name, _ = split
    return (
        _LABEL.fullmatch(name) is not None
        or parse_address(name) is not None
        or name.endswith(SUFFIXES)
        or any(name == other or (other.startswith(".") and name.endswith(other)) for other in allowed)
    )


def may_call(origin: str, host: str | None, allowed: Sequence[str]) -> bool:
    """Whether a page of this `Origin` may call: it was loaded from here, or is listed.

    Schemes of listed origins count, and those that only apps have (`app://obsidian.md`) can be listed, and `null`.
    """
    if ANY in allowed or origin.lower() in allowed:
        return True
    scheme, separator, rest = origin.lower().partition("://")
    page, here = split_host(rest), split_host(host or "")
    if not separator or page is None or here is None:
        return False
    default = _DEFAULT_PORTS.get(scheme)
    # Behind a proxy that ends TLS the schemes differ, so names and ports decide.
    return default is not None and (page[0], page[1] or default) == (here[0], here[1] or default)
