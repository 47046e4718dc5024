"""Access control: which addresses, host names, web pages and keys may call, and how many connections are held.

A web page can post a form to an address on the LAN without the user's knowledge, and its owner can let a name of theirs
point to this server (DNS rebinding). Browsers reveal both: the page in `Origin`, the name in `Host`.
"""

import contextlib
import hmac
import re
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers
from starlette.types import Scope

from localwhisper_client.shared.lan_ranges import (
    LOOPBACK,
    RANGES,
    SUFFIXES,
    Address,
    Network,
    host_of,
    parse_address,
    within,
)
from localwhisper_server.errors import Forbidden, HeadTooLarge, MissingKey, ServerError, WrongKey

# The OpenAI SDK sends 20; proxies add a few.
MOST_HEADERS = 100
# Monitors and the clients' breakers ask these without a key. The answers hold no secrets.
HEALTH_PATHS = frozenset({"/health", "/v1/health", "/ready", "/v1/ready"})
# Below this path are the files of the page at "/".
PAGE_FILES = "/web/"
# For callers whose `Authorization` header is meant for the upstream.
KEY_HEADER = "x-localwhisper-key"
# A browser cannot set headers for a WebSocket: OpenAI's SDK sends the key as one of the sub-protocols.
KEY_SUBPROTOCOL = "openai-insecure-api-key."
ANY = "*"

_SHOWN = 100  # characters of a header in a message or the log
# What separates the words of a header; no key has one of these in it.
_SEPARATORS = re.compile(rb'[\s,;"]+')
_HOST = re.compile(r"(?P<name>\[[0-9a-z:.%_-]+\]|[^\[\]:/@?#\\,\s]+)(?::(?P<port>\d{1,5})?)?", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9_-]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections are held: in `total`, and of one address, unless it is in one of the `unlimited` ranges."""

    total: int = 2048
    per_address: int = 256
    unlimited: Sequence[Network] = LOOPBACK

    def refusal(self, peer: str, peers: Sequence[str]) -> str | None:
        """Say why `peer` may have no further connection beside those of `peers`; None if it may. Pure."""
        if len(peers) >= self.total:
            return f"{self.total} connections are open"
        address = parse_address(peer)
        # Counting by host takes time, and is needless while fewer are open in all.
        if len(peers) < self.per_address or address is None or within(address, self.unlimited):
            return None
        host = host_of(address)
        known = (other for other in map(parse_address, peers) if other is not None)
        if sum(host_of(other) == host for other in known) < self.per_address:
            return None
        return f"{self.per_address} connections of {host} are open"


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may call. Loopback always may; beside it, the ranges in `allow_from`.

    `trusted_proxies` are believed when they name the address that they forward for. `hosts` are names of this server
    beside those that only a LAN has: a name means itself, `.example.org` all names below it, `*` any. `origins` are
    pages that may call beside this server's own: `https://app.example.org`, `app://obsidian.md`, `null`, or `*`: any.
    Hosts and origins are in lower case. Without `keys`, no key is needed; with some, any page that sends one may call.
    """

    allow_from: Sequence[Network] = RANGES
    trusted_proxies: Sequence[Network] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    keys: Sequence[str] = field(default=(), repr=False)


def check_origin(rules: Rules, scope: Scope) -> Address:
    """Return the address that a request came from.

    Raises:
        HeadTooLarge: it has more headers than any client sends.
        Forbidden: the address, the host name or the page may not call.

    """
    if len(scope["headers"]) > MOST_HEADERS:
        raise HeadTooLarge(f"The request has more than {MOST_HEADERS} header fields.", code="too_many_headers")
    headers = Headers(scope=scope)
    peer = scope.get("client")
    address = caller(peer[0] if peer else None, headers.getlist("x-forwarded-for"), rules.trusted_proxies)
    if address is None or not within(address, (*LOOPBACK, *rules.allow_from)):
        raise Forbidden(
            f"Requests from {address or 'an unknown address'} are not allowed: this server answers only its own "
            "network. To let this address in, start it with --allow-from and the address or its range.",
            code="address_not_allowed",
            who=str(address or "unknown"),
            option="--allow-from",
        )
    hosts = headers.getlist("host")
    for host in hosts:
        if host.strip() and not names_this_server(host, rules.hosts):
            raise Forbidden(
                f"This server does not answer to the name {host[:_SHOWN]!r}, so that no web page can reach it under a "
                "name of its own. Call it by its address, or start it with --allow-host and the name.",
                code="host_not_allowed",
                who=host[:_SHOWN],
                option="--allow-host",
            )
    for page in headers.getlist("origin"):
        if not may_call(page, hosts[0] if hosts else None, rules.origins) and not _proves_itself(rules, scope):
            raise Forbidden(
                f"Web pages from {page[:_SHOWN]!r} may not call this server. To let them, start it with --cors-origin "
                "and that origin.",
                code="origin_not_allowed",
                who=page[:_SHOWN],
                option="--cors-origin",
            )
    return address


def check_key(rules: Rules, scope: Scope) -> None:
    """Raise MissingKey or WrongKey unless a request has one of the keys or needs none."""
    path = scope["path"]
    # The page asks its user for the key.
    if rules.keys and path not in HEALTH_PATHS and path != "/" and not path.startswith(PAGE_FILES):
        _require_key(rules.keys, Headers(scope=scope))


def _proves_itself(rules: Rules, scope: Scope) -> bool:
    """Whether a request needs or has a key, which a page that forges requests does not know.

    A preflight has none, and changes nothing.
    """
    if not rules.keys:
        return False
    if scope.get("method") == "OPTIONS" or scope["path"] not in HEALTH_PATHS:
        return True
    try:
        _require_key(rules.keys, Headers(scope=scope))
    except ServerError:
        return False
    return True


def _require_key(keys: Sequence[str], headers: Headers) -> None:
    key = headers.get(KEY_HEADER, "").strip(" \t")
    if KEY_HEADER not in headers:
        scheme, _, token = headers.get("authorization", "").strip(" \t").partition(" ")
        key = token.strip(" \t") if scheme.lower() == "bearer" else _subprotocol_key(headers)
    if not key:
        raise MissingKey
    if not _is_one_of(key.encode("latin-1"), keys):
        raise WrongKey(key)


def _subprotocol_key(headers: Headers) -> str:
    """Return the key among the sub-protocols of a WebSocket; empty where there is none."""
    offered = ",".join(headers.getlist("sec-websocket-protocol")).split(",")
    keys = [name.strip()[len(KEY_SUBPROTOCOL) :] for name in offered if name.strip().startswith(KEY_SUBPROTOCOL)]
    return keys[0] if keys else ""


def contains_key(value: bytes, keys: Sequence[str]) -> bool:
    """Whether a header's value, or a part of a query, has one of the keys as a word, in any usual form."""
    words: set[bytes] = set()
    for form in (value.strip(), unquote_to_bytes(value), unquote_to_bytes(value.replace(b"+", b" "))):
        words |= {form, *_SEPARATORS.split(form)}
    scheme, _, encoded = value.strip().partition(b" ")
    if scheme.lower() == b"basic":
        with contextlib.suppress(ValueError):
            user, _, password = b64decode(encoded).partition(b":")
            words |= {user, password}
    # `token="KEY"` and `api_key=KEY` as well. A key may end in an equals sign.
    words |= {word.partition(b"=")[2] for word in words}
    return any(_is_one_of(word, keys) for word in words)


def _is_one_of(key: bytes, keys: Sequence[str]) -> bool:
    """Whether `key` is among `keys`; the time that this takes does not depend on which."""
    # Not `any`, which would stop at the first that is equal.
    return sum(hmac.compare_digest(key, own.encode()) for own in keys) > 0


def caller(peer: str | None, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> Address | None:
    """Return the address that a request came from, None where it is unknown.

    `peer` is the other end of the connection, `forwarded_for` the values of the `X-Forwarded-For` headers. Each proxy
    appends the address that it was called from. So the list is read from its end, as far as trusted proxies wrote it;
    the caller may have made up the rest.
    """
    hops = [hop for value in forwarded_for for hop in value.split(",") if hop.strip()]
    address = parse_address(peer or "")
    while hops and address is not None and within(address, trusted):
        address = parse_address(hops.pop())
    return address


def names_this_server(host: str, allowed: Sequence[str]) -> bool:
    """Whether a `Host` header names this server: an address, a single label, a LAN's name, or an `allowed` one."""
    if ANY in allowed:
        return True
    split = _split_host(host)
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
    """Whether a page of this `Origin` was loaded from this server, by its `Host` header, or is `allowed`."""
    if ANY in allowed or origin.lower() in allowed:
        return True
    scheme, separator, rest = origin.lower().partition("://")
    page, here = _split_host(rest), _split_host(host or "")
    if not separator or page is None or here is None:
        return False
    default = _DEFAULT_PORTS.get(scheme)
    # Behind a proxy that ends TLS the schemes differ, so names and ports decide.
    return default is not None and (page[0], page[1] or default) == (here[0], here[1] or default)


def _split_host(value: str) -> tuple[str, int | None] | None:
    """Return the name, in lower case, and the port of a `Host` header; None where it is malformed."""
    match = _HOST.fullmatch(value.strip())
    if match is None:
        return None
    port = match["port"]
    return match["name"].lower().removesuffix("."), int(port) if port else None
