"""Realtime sessions send audio over a socket of their own, past the routing: they are opened only where audio may go.

The LAN server does not answer them yet, so under `local_only` and `wait` one to the cloud is refused before it is made.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from localwhisper_client._http import http
from localwhisper_client.errors import CloudNotAllowed
from localwhisper_client.routing.policy import current, strictest
from localwhisper_client.settings import is_openai

if TYPE_CHECKING:
    from collections.abc import Callable

    from localwhisper_client.calls import Route


def allow(route: Route[Any], url: str) -> None:
    """Let audio be streamed to this URL: on the LAN, or by a policy that says so. May look a name up, for 1 s.

    Raises:
        CloudNotAllowed: it must not.

    """
    policy = strictest([route.policy, current()])
    settings = route.lan.settings
    host = urlsplit(url).hostname or ""
    named = settings.named and host in {urlsplit(each).hostname for each in settings.local_base_urls}
    if policy.leaves_lan or named:
        return
    # The cloud's own names are not even looked up.
    if not is_openai(url) and route.trust.on_lan(host, settings.connect_timeout):
        return
    raise CloudNotAllowed(
        f"A realtime session with {host} would carry audio out of the LAN, and the policy is {policy}: nothing was "
        "sent. Use audio.transcriptions, which the LAN server answers, or let audio leave: LOCALWHISPER_POLICY=cloud, "
        "and policy='cloud' where the program makes the client.",
        request=http.Request("GET", url),
    )


def allow_of(client: Any, route: Route[Any]) -> None:
    """Let this client open a realtime session, as `allow` does."""
    allow(route, str(client.websocket_base_url or client.base_url))


def asking(resource: Any, ask: Callable[[], None]) -> Any:
    """Return one of the SDK's resources, changed so that each `connect` in it calls `ask` first."""
    below = (name for name, value in vars(type(resource)).items() if isinstance(value, functools.cached_property))
    for each in (resource, *(getattr(resource, name) for name in below)):
        if (connect := getattr(each, "connect", None)) is not None:
            each.connect = _asking(connect, ask)
    return resource


def _asking(connect: Callable[..., Any], ask: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(connect)
    def asked(*args: Any, **options: Any) -> Any:
        ask()
        return connect(*args, **options)

    return asked
