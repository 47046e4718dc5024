"""Settings of the client: constructor arguments and environment in, one frozen object out."""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast, overload
from urllib.parse import urlsplit, urlunsplit

from localwhisper_client.cloud.ledger import Budget
from localwhisper_client.errors import ConfigurationError
from localwhisper_client.routing.policy import Policy, strictest
from localwhisper_client.shared.lan_ranges import named_like_one

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localwhisper_client.events import Event

AUTO = "auto"
"""Takes the place of a base URL: the servers that discovery finds."""
DEFAULT_LOCAL_BASE_URL = "http://localhost:5000/v1"
DEFAULT_CLOUD_URL = "https://api.openai.com/v1"
DEFAULT_CONNECT_TIMEOUT = 1.0

# RFC 3490 §3.1: characters that count as a dot between labels.
_FULL_STOPS = dict.fromkeys(map(ord, "\u3002\uff0e\uff61"), ".")
# Azure's endpoints serve OpenAI's models: they are the cloud as well.
_OPENAI_DOMAINS = ("openai.com", "openai.azure.com")


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
    ours = {name: value for name, value in options.items() if name in RoutingOptions.__annotations__}
    sdk = {name: value for name, value in options.items() if name not in ours}
    return cast("RoutingOptions", ours), sdk


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the local servers are, where the cloud is, and what may go where."""

    local_base_urls: tuple[str, ...] = (DEFAULT_LOCAL_BASE_URL,)
    """Base URLs of the local servers, without a final slash; `auto` for those that discovery finds."""
    local_api_key: str | None = field(default=None, repr=False)
    """The key of the local servers; `None` sends none."""
    policy: Policy = Policy.LOCAL_ONLY
    """The strictest policy of the environment, the constructor and the clients that this one is a copy of."""
    wants_cloud: bool = False
    """Whether the program asked for the cloud, which a stricter policy may forbid."""
    cloud_url: str = DEFAULT_CLOUD_URL
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    """Seconds that a local server has to accept a connection."""
    wake: str | None = None
    """The machine to wake after an outage, `AA:BB:CC:DD:EE:FF[@host]`."""
    ledger: Path | None = None
    """The file that records calls; `None` for none."""
    budget: Budget | None = None
    """The most that the cloud may cost; `None` for no limit."""
    named: bool = True
    """Whether the user set these servers for speech-to-text. `OPENAI_BASE_URL` alone may be that of a gateway."""
    gateway: str | None = None
    """`OPENAI_BASE_URL`, if calls other than speech-to-text go there and not to `cloud_url`."""

    @classmethod
    def load(cls, environ: Mapping[str, str], **options: Unpack[RoutingOptions]) -> Settings:
        """Read the environment; options override it, except that the stricter policy wins.

        Variables: `LOCALWHISPER_BASE_URL` (several, separated by commas), else `OPENAI_BASE_URL` where it points away
        from OpenAI; `LOCALWHISPER_API_KEY`; `LOCALWHISPER_POLICY`; `LOCALWHISPER_CLOUD_BASE_URL`;
        `LOCALWHISPER_WAKE`; `LOCALWHISPER_LEDGER` (a path, or `1` for the default one, which a budget also uses);
        `LOCALWHISPER_CLOUD_BUDGET` (`5.00/month`, `0.50/day`).

        Raises:
            ConfigurationError: a value cannot be used; the message names it and says what would do.

        """

        def variable(name: str) -> str | None:
            # In a compose file, a variable is unset by giving it an empty value.
            return environ.get(name, "").strip() or None

        gateway = variable("OPENAI_BASE_URL")
        name, value = "local_base_url", options.get("local_base_url")
        if not value:
            name, value = "LOCALWHISPER_BASE_URL", variable("LOCALWHISPER_BASE_URL")
        if not value and gateway and not is_openai(gateway):
            name, value = "OPENAI_BASE_URL", gateway
        local_base_urls = _local_base_urls(name, value or DEFAULT_LOCAL_BASE_URL)
        # The local server answers only speech-to-text, so it is no gateway.
        if gateway and named_like_one(_host(gateway)) and gateway.rstrip("/") in local_base_urls:
            gateway = None
        cloud_url = variable("LOCALWHISPER_CLOUD_BASE_URL") or DEFAULT_CLOUD_URL
        budget = _budget("LOCALWHISPER_CLOUD_BUDGET", variable("LOCALWHISPER_CLOUD_BUDGET"))
        policy = parse_policy("policy", options.get("policy"))
        connect_timeout = options.get("connect_timeout")
        settings = cls(
            local_base_urls=local_base_urls,
            local_api_key=options.get("local_api_key") or variable("LOCALWHISPER_API_KEY"),
            policy=strictest([policy, parse_policy("LOCALWHISPER_POLICY", variable("LOCALWHISPER_POLICY"))]),
            wants_cloud=policy is Policy.CLOUD,
            cloud_url=_base_url("LOCALWHISPER_CLOUD_BASE_URL", cloud_url),
            named=name != "OPENAI_BASE_URL",
            gateway=gateway,
            connect_timeout=DEFAULT_CONNECT_TIMEOUT if connect_timeout is None else connect_timeout,
            wake=variable("LOCALWHISPER_WAKE"),
            ledger=_ledger("LOCALWHISPER_LEDGER", variable("LOCALWHISPER_LEDGER"), environ, budget),
            budget=budget,
        )
        settings.check(name)
        return settings

    def changed(self, **options: Unpack[RoutingOptions]) -> Settings:
        """Return the settings of a copy of the client: what is given is new, but the policy is never looser.

        Raises:
            ConfigurationError: an option cannot be used.

        """
        url, connect_timeout = options.get("local_base_url"), options.get("connect_timeout")
        policy = parse_policy("policy", options.get("policy"))
        settings = replace(
            self,
            local_base_urls=_local_base_urls("local_base_url", url) if url else self.local_base_urls,
            local_api_key=options.get("local_api_key") or self.local_api_key,
            policy=strictest([self.policy, policy]),
            wants_cloud=self.wants_cloud if policy is None else policy is Policy.CLOUD,
            named=self.named or bool(url),
            connect_timeout=self.connect_timeout if connect_timeout is None else connect_timeout,
        )
        settings.check("local_base_url")
        return settings

    def check(self, name: str) -> None:
        """Raise `ConfigurationError` if the settings cannot be used; `name` is the setting that names the servers."""
        if not self.local_base_urls:
            raise ConfigurationError(f"{name} names no server. Give a URL such as {DEFAULT_LOCAL_BASE_URL}.")
        if self.connect_timeout <= 0:
            raise ConfigurationError(f"connect_timeout must be more than 0 seconds, not {self.connect_timeout}.")
        for url in self.local_base_urls:
            # Under local_only this URL would carry audio off the LAN.
            if is_openai(url) or url == self.cloud_url:
                raise ConfigurationError(
                    f"{name} must name a server on the LAN, but {url} is the cloud. To let calls go there when the "
                    "local server does not answer, set LOCALWHISPER_POLICY=cloud instead."
                )


@overload
def parse_policy(name: str, value: str) -> Policy: ...
@overload
def parse_policy(name: str, value: str | None) -> Policy | None: ...
def parse_policy(name: str, value: str | None) -> Policy | None:
    """Return the policy called `value`; `name` is the setting, for the error message."""
    if value is None:
        return None
    try:
        return Policy(value.strip().lower())
    except ValueError:
        choices = ", ".join(Policy)
        raise ConfigurationError(f"{name} is {value!r}, which is not a policy. Use one of: {choices}.") from None


def is_openai(url: str) -> bool:
    """Whether the URL points at OpenAI's own service."""
    # As the name is looked up: full-width letters and other full stops stand for the usual ones.
    host = unicodedata.normalize("NFKC", _host(url)).translate(_FULL_STOPS).rstrip(".")
    return any(host == domain or host.endswith("." + domain) for domain in _OPENAI_DOMAINS)


def _host(url: str) -> str:
    try:
        return urlsplit(url.strip()).hostname or ""
    except ValueError:
        return ""


def health_url(base_url: str, path: str = "/health") -> str:
    """Return the URL of a server's health path, which is beside `/v1` and not under it."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix("/v1") + path))


def without_credentials(url: str) -> str:
    """Return the URL without its user and password, fit for a log."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def state_folder(environ: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Return the user's folder for what a program remembers, by the system's convention. It may not exist yet."""
    home = Path(environ.get("HOME") or environ.get("USERPROFILE") or Path.home())
    if platform == "win32":
        folder = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        folder = home / "Library" / "Application Support"
    else:
        state = Path(environ.get("XDG_STATE_HOME", ""))
        # The XDG specification: a relative path is ignored.
        folder = state if state.is_absolute() else home / ".local" / "state"
    return folder / "localwhisper"


def ledger_path(value: str, environ: Mapping[str, str]) -> Path | None:
    """Return the file that `LOCALWHISPER_LEDGER` names: the default for `1` or `yes`, none for `0`, `off` or `no`."""
    word = value.strip().lower()
    if word in ("0", "off", "false", "no"):
        return None
    if word in ("", "1", "on", "true", "yes"):
        return state_folder(environ) / "ledger.sqlite3"
    return Path(value.strip()).expanduser()


def _budget(name: str, value: str | None) -> Budget | None:
    try:
        return None if value is None else Budget.parse(value)
    except ValueError:
        raise ConfigurationError(f"{name} is {value!r}, which is not a budget. Use 5.00/month or 0.50/day.") from None


def _ledger(name: str, value: str | None, environ: Mapping[str, str], budget: Budget | None) -> Path | None:
    path = None if value is None and budget is None else ledger_path(value or "", environ)
    if path is None and budget is not None:
        raise ConfigurationError(f"{name} is {value!r}, but a budget needs a ledger. Unset one of the two.")
    return path


def _local_base_urls(name: str, value: str) -> tuple[str, ...]:
    urls = [url for part in value.split(",") if (url := part.strip())]
    return tuple(AUTO if url.lower() == AUTO else _base_url(name, url) for url in urls)


def _base_url(name: str, value: str) -> str:
    url = value.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"{name} holds {url!r}, which is not a URL. Give one such as {DEFAULT_LOCAL_BASE_URL}."
        )
    # `urlsplit` has made the scheme lower case: other modules compare it with `https:`.
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host.lower()}"))
