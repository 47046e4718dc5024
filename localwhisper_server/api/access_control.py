"""Who may come in and with how much: address, name, page, key, size and pace, before anything is parsed.

Pure ASGI, so that it sees bytes as they arrive and costs a request nothing it does not need. Two wrappers, because
what lies between them answers browsers: `Door` looks at where a request comes from, `Guard` at what it brings.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from localwhisper_server.api import network, origin
from localwhisper_server.api.asgi import App, Receive, Scope, Send, header_values
from localwhisper_server.api.keys import check_key
from localwhisper_server.api.limits import Floor, limited
from localwhisper_server.errors import Forbidden, MissingKey, TooLarge, TooManyHeaders, TooManyRequests, WrongKey

# What a monitor or a client's breaker asks has no secrets in it.
OPEN_PATHS = frozenset({"/health", "/v1/health", "/ready", "/v1/ready"})
# A stock SDK sends 20; proxies add a few.
MOST_HEADERS = 100
_SHOWN = 100  # characters of a header in a message or the log
_CALLER = "localwhisper.caller"  # where the door leaves the address for the guard


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may come in. Loopback always may; what is in `allow_from` may, by default what is private.

    `trusted_proxies` are believed about whom they speak for. `hosts` and `origins`, in lower case, are what browsers
    may name and which pages may call beside the server's own; see `origin`. No `keys`: none is needed; with some, any
    page may call that has one. `per_address` 0 sets no limit.
    """

    allow_from: Sequence[network.Network] = network.LAN
    trusted_proxies: Sequence[network.Network] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    keys: Sequence[str] = field(default=(), repr=False)
    max_upload: int = 512 * 1024 * 1024
    floor: Floor = field(default_factory=Floor)
    per_address: int = 0


def check_origin(rules: Rules, scope: Scope) -> network.Address:
    """Return whose request this is, if it may come in.

    Raises:
        TooManyHeaders: more of them than any client sends.
        Forbidden: an address from outside, a name that is not ours, or a page that may not call.

    """
    headers = scope["headers"]
    if len(headers) > MOST_HEADERS:
        raise TooManyHeaders(MOST_HEADERS)
    peer = scope.get("client")
    forwarded = [value.decode("latin-1") for value in header_values(headers, b"x-forwarded-for")]
    address = network.caller(peer[0] if peer else None, forwarded, rules.trusted_proxies)
    if address is None or not network.within(address, (*network.LOOPBACK, *rules.allow_from)):
        raise Forbidden(
            f"Requests from {address or 'an unknown address'} are not allowed: this server answers only its own "
            "network. To let this address in, start it with --allow-from and the address or its range.",
            code="address_not_allowed",
            who=str(address or "unknown"),
            option="--allow-from",
        )
    hosts = [value.decode("latin-1") for value in header_values(headers, b"host")]
    for host in hosts:
        if host.strip() and not origin.is_ours(host, rules.hosts):
            raise Forbidden(
                f"This server does not answer to the name {_shown(host)}, so that no web page can reach it under a "
                "name of its own. Call it by its address, or start it with --allow-host and the name.",
                code="host_not_allowed",
                who=host[:_SHOWN],
                option="--allow-host",
            )
    for value in header_values(headers, b"origin"):
        page = value.decode("latin-1")
        if not origin.may_call(page, hosts[0] if hosts else None, rules.origins) and not _cannot_be_forged(
            rules, scope
        ):
            raise Forbidden(
                f"Web pages from {_shown(page)} may not call this server. To let them, start it with --cors-origin "
                "and that origin.",
                code="origin_not_allowed",
                who=page[:_SHOWN],
                option="--cors-origin",
            )
    return address


def _cannot_be_forged(rules: Rules, scope: Scope) -> bool:
    """Whether a request must show a key, or shows one: a foreign page does not know it.

    The question before it (a CORS preflight) carries none, and changes nothing.
    """
    if not rules.keys:
        return False
    if scope["method"] == "OPTIONS" or scope["path"] not in OPEN_PATHS:
        return True
    try:
        check_key(scope["headers"], rules.keys)
    except (MissingKey, WrongKey):
        return False
    return True


class Door:
    """An ASGI wrapper that lets in whom the rules let in; what it raises, what is around it answers."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] == "http":
            # A base URL that ends in a slash doubles it. Once for all that look at the path after this.
            scope["path"] = re.sub("/{2,}", "/", scope["path"])
            scope["raw_path"] = re.sub(b"/{2,}", b"/", scope["raw_path"])
            scope[_CALLER] = check_origin(self._rules, scope)
        elif scope["type"] != "lifespan":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
            return
        await self._app(scope, receive, send)


class Guard:
    """An ASGI wrapper that checks the key and counts the body."""

    def __init__(self, app: App, rules: Rules, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._rules = rules
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        rules, headers = self._rules, scope["headers"]
        if rules.keys and scope["path"] not in OPEN_PATHS:
            check_key(headers, rules.keys)
        for announced in header_values(headers, b"content-length"):
            if announced.isdigit() and int(announced[:20]) > rules.max_upload:
                raise TooLarge(rules.max_upload, int(announced[:20]))
        receive = limited(receive, limit=rules.max_upload, floor=rules.floor, clock=self._clock)
        await self._app(scope, receive, send)


class Shares:
    """Lets one address have only `limit` requests open, of all routes that it is put around; 0 sets no limit.

    It goes around the routes themselves, so that no spelling of a path passes by it. `retry_after` estimates in
    seconds when there will be room again.
    """

    def __init__(self, limit: int, *, retry_after: Callable[[], float]) -> None:
        self._limit = limit
        self._retry_after = retry_after
        self._open: Counter[str] = Counter()

    def around(self, app: App) -> App:
        """Return the application with the limit; it raises TooManyRequests."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            address = scope.get(_CALLER)
            if not self._limit or address is None or address.is_loopback:
                await app(scope, receive, send)
                return
            who = network.of_one_host(address)
            if self._open[who] >= self._limit:
                raise TooManyRequests(self._limit, retry_after=self._retry_after())
            self._open[who] += 1
            try:
                await app(scope, receive, send)
            finally:
                self._open[who] -= 1
                if not self._open[who]:
                    del self._open[who]  # else it would grow with every address that ever called

        return counted


def _shown(value: str) -> str:
    """Return a header's value fit for a message."""
    return repr(value[:_SHOWN])
