"""How a client routes its calls: its arguments, and what they make. Shared by the sync and the async client."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypedDict, cast
from urllib.parse import urlsplit

from localwhisper_client._http import http
from localwhisper_client.cloud.ledger import Ledger
from localwhisper_client.errors import CloudNotAllowed
from localwhisper_client.events import Announcer
from localwhisper_client.lan.resolution import Hosts
from localwhisper_client.lan.servers import ClientT, LocalServers
from localwhisper_client.routing.policy import Policy, current, strictest
from localwhisper_client.settings import Settings, is_openai, parse_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localwhisper_client.events import Event
    from localwhisper_client.lan.discovery import Discovery
    from localwhisper_client.lan.wake import Waker
    from localwhisper_client.routing.breaker import Rules

# With one of these arguments the SDK finds its own base URL, and accepts no other.
_OWN_ROUTE = ("provider", "data_residency", "workload_identity")
_OWN_KEY = ("api_key", "provider", "workload_identity")


class RoutingOptions(TypedDict, total=False):
    """The arguments that `LocalWhisper` adds to the SDK's. `None` means the same as leaving one out."""

    local_base_url: str | None
    local_api_key: str | None
    policy: Policy | str | None
    connect_timeout: float | None
    on_event: Callable[[Event], None] | None


class ClientOptions(RoutingOptions, total=False):
    """All arguments of `LocalWhisper` for type checkers. Others of a newer SDK work too."""

    api_key: Any
    admin_api_key: Any
    workload_identity: Any
    provider: Any
    data_residency: Any
    organization: str | None
    project: str | None
    webhook_secret: str | None
    base_url: Any
    websocket_base_url: Any
    timeout: Any
    max_retries: int
    default_headers: Mapping[str, str] | None
    default_query: Mapping[str, object] | None
    http_client: Any


class CopyOptions(ClientOptions, total=False):
    """All arguments of `LocalWhisper.copy`, for type checkers."""

    set_default_headers: Mapping[str, str] | None
    set_default_query: Mapping[str, object] | None


def split(options: ClientOptions) -> tuple[RoutingOptions, dict[str, Any]]:
    """Return our options and the SDK's."""
    ours: dict[str, Any] = {}
    sdk: dict[str, Any] = {}
    for name, value in options.items():
        (ours if name in RoutingOptions.__annotations__ else sdk)[name] = value
    return cast("RoutingOptions", ours), sdk


@dataclass(frozen=True)
class Route(Generic[ClientT]):
    """How a client routes its calls. Immutable; shared with copies of the client as far as they change nothing."""

    servers: LocalServers[ClientT]
    policy: Policy
    announce: Announcer
    ledger: Ledger
    hosts: Hosts = field(default_factory=Hosts)
    wants_cloud: bool = False
    """Whether the program asked for the cloud, which a stricter policy may forbid."""
    wall: Callable[[], float] = time.time
    """The time of day, in seconds since the epoch."""

    @classmethod
    def load(
        cls,
        kind: type[ClientT],
        environ: Mapping[str, str],
        options: RoutingOptions,
        *,
        finder: Discovery | None = None,
        waker: Waker | None = None,
        rules: Rules | None = None,
    ) -> Route[ClientT]:
        """Read the options and the environment; opens no connection and no file. For the rest see `LocalServers`."""
        settings = Settings.load(
            environ,
            local_base_url=options.get("local_base_url"),
            local_api_key=options.get("local_api_key"),
            connect_timeout=options.get("connect_timeout"),
        )
        policy = parse_policy("policy", options.get("policy"))
        return cls(
            LocalServers(settings, kind, finder=finder, waker=waker, rules=rules),
            strictest([settings.policy, policy]),
            Announcer(options.get("on_event")),
            Ledger(settings.ledger, settings.budget),
            wants_cloud=policy is Policy.CLOUD,
        )

    def changed(self, options: RoutingOptions) -> Route[ClientT]:
        """Return the route of a copy: other servers only if the options say so, and never a looser policy."""
        url, key, connect_timeout = (
            options.get("local_base_url"),
            options.get("local_api_key"),
            options.get("connect_timeout"),
        )
        servers = self.servers
        if url or key or connect_timeout is not None:
            old = servers.settings
            new = Settings.load(
                {},
                local_base_url=url or ",".join(old.local_base_urls),
                local_api_key=key or old.local_api_key,
                connect_timeout=old.connect_timeout if connect_timeout is None else connect_timeout,
            )
            settings = replace(
                old,
                local_base_urls=new.local_base_urls,
                local_api_key=new.local_api_key,
                connect_timeout=new.connect_timeout,
                named=old.named or bool(url),
            )
            settings.check("local_base_url")
            servers = servers.with_settings(settings)
        policy, on_event = parse_policy("policy", options.get("policy")), options.get("on_event")
        return replace(
            self,
            servers=servers,
            policy=strictest([self.policy, policy]),
            announce=self.announce if on_event is None else Announcer(on_event),
            wants_cloud=self.wants_cloud if policy is None else policy is Policy.CLOUD,
        )

    def cloud_arguments(self, sdk: dict[str, Any], environ: Mapping[str, str], no_key: object) -> dict[str, Any]:
        """Return the arguments for the SDK's own constructor, with a base URL and, if needed, a substitute for the key.

        The SDK would take the base URL from `OPENAI_BASE_URL`, which may be the local server's. If there is no key and
        no audio may leave the LAN, `no_key` is what the SDK calls for one when the program uses the cloud after all.
        """
        arguments = dict(sdk)
        if not _any_given(sdk, "base_url", *_OWN_ROUTE):
            arguments["base_url"] = self.servers.settings.gateway or self.servers.settings.cloud_url
        if not self.policy.leaves_lan and not _any_given(sdk, *_OWN_KEY) and not environ.get("OPENAI_API_KEY"):
            arguments["api_key"] = no_key
        return arguments

    def allow_realtime(self, url: str) -> None:
        """Raise unless the policy allows a realtime session at this URL. May look its name up, for 1 s.

        A realtime session streams audio past the routing, and the local server does not offer one.

        Raises:
            CloudNotAllowed: the policy forbids it.

        """
        policy = strictest([self.policy, current()])
        settings = self.servers.settings
        host = urlsplit(url).hostname or ""
        named = settings.named and host in {urlsplit(each).hostname for each in settings.local_base_urls}
        if policy.leaves_lan or named:
            return
        # The cloud's own names need no look-up.
        if not is_openai(url) and self.hosts.on_lan(url, settings.connect_timeout):
            return
        raise CloudNotAllowed(
            f"A realtime session with {host} would carry audio out of the LAN, and the policy is {policy}: nothing was "
            "sent. Use audio.transcriptions, which the local server answers, or allow the cloud with "
            "LOCALWHISPER_POLICY=cloud, and policy='cloud' where the program makes the client.",
            request=http.Request("GET", url),
        )


def _any_given(arguments: dict[str, Any], *names: str) -> bool:
    # The SDK's "not given" is falsy, and the SDK ignores an empty key or address.
    return any(arguments.get(name) for name in names)
