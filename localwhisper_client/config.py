"""Settings of the client: constructor arguments and environment in, one frozen object out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from localwhisper_client.errors import ConfigurationError
from localwhisper_client.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_LAN_URL = "http://localhost:5000/v1"
DEFAULT_CLOUD_URL = "https://api.openai.com/v1"
DEFAULT_CONNECT_TIMEOUT = 1.0

# Azure's endpoints are OpenAI's models on somebody else's machine: as far from the house.
_OPENAI_DOMAINS = ("openai.com", "openai.azure.com")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the house is, where the cloud is, and what may go where."""

    lan_urls: tuple[str, ...] = (DEFAULT_LAN_URL,)
    """Base URLs of the servers in the house, in the order they are asked; without a final slash."""
    lan_key: str | None = field(default=None, repr=False)
    """The key the house's servers want; `None` sends none."""
    policy: Policy | None = None
    """What the environment asks for; `None` where it is silent."""
    cloud_url: str = DEFAULT_CLOUD_URL
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    """Seconds a server in the house has to accept a connection."""

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str],
        *,
        lan_url: str | None = None,
        lan_key: str | None = None,
        connect_timeout: float | None = None,
    ) -> Settings:
        """Read the environment; arguments win over it.

        Variables: `LOCALWHISPER_BASE_URL` (several, separated by commas), else `OPENAI_BASE_URL` where it points away
        from OpenAI; `LOCALWHISPER_API_KEY`; `LOCALWHISPER_POLICY`; `LOCALWHISPER_CLOUD_BASE_URL`.

        Raises:
            ConfigurationError: a value cannot be used; the message names it and says what would do.

        """
        name, value = "lan_url", lan_url
        if not value:
            name, value = "LOCALWHISPER_BASE_URL", _set(environ, "LOCALWHISPER_BASE_URL")
        if not value:
            name, value = "OPENAI_BASE_URL", _set(environ, "OPENAI_BASE_URL")
            if value and is_openai(value):
                value = None
        cloud_name, cloud_url = "LOCALWHISPER_CLOUD_BASE_URL", _set(environ, "LOCALWHISPER_CLOUD_BASE_URL")
        settings = cls(
            lan_urls=tuple(_base_url(name, part) for part in value.split(",") if part.strip())
            if value
            else (DEFAULT_LAN_URL,),
            lan_key=lan_key or _set(environ, "LOCALWHISPER_API_KEY"),
            policy=parse_policy("LOCALWHISPER_POLICY", _set(environ, "LOCALWHISPER_POLICY")),
            cloud_url=_base_url(cloud_name, cloud_url) if cloud_url else DEFAULT_CLOUD_URL,
            connect_timeout=DEFAULT_CONNECT_TIMEOUT if connect_timeout is None else connect_timeout,
        )
        settings._check(name)
        return settings

    def _check(self, name: str) -> None:
        if not self.lan_urls:
            raise ConfigurationError(f"{name} names no server. Give a URL such as {DEFAULT_LAN_URL}.")
        if self.connect_timeout <= 0:
            raise ConfigurationError(f"connect_timeout must be more than 0 seconds, not {self.connect_timeout}.")
        for url in self.lan_urls:
            # Fails closed: under local_only this URL would carry audio out of the house.
            if is_openai(url) or url == self.cloud_url:
                raise ConfigurationError(
                    f"{name} must name a server in the house, but {url} is the cloud. To let calls go there when the "
                    "house is silent, set LOCALWHISPER_POLICY=cloud instead."
                )


def parse_policy(name: str, value: str | None) -> Policy | None:
    """Return the policy called `value`; `name` is what the user set, for the error."""
    if value is None:
        return None
    try:
        return Policy(value.strip().lower())
    except ValueError:
        choices = ", ".join(Policy)
        raise ConfigurationError(f"{name} is {value!r}, which is not a policy. Use one of: {choices}.") from None


def is_openai(url: str) -> bool:
    """Whether the URL points at OpenAI's own service."""
    host = (urlsplit(url.strip()).hostname or "").rstrip(".")
    return any(host == domain or host.endswith("." + domain) for domain in _OPENAI_DOMAINS)


def health_url(base_url: str) -> str:
    """Return where a server with this base URL answers for its health: beside its `/v1`, not under it."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix("/v1") + "/health"))


def _set(environ: Mapping[str, str], name: str) -> str | None:
    # A variable set to nothing is how people unset one in a compose file.
    return environ.get(name, "").strip() or None


def _base_url(name: str, value: str) -> str:
    url = value.strip().rstrip("/")
    if url == "auto":
        raise ConfigurationError(
            f"{name}=auto needs discovery, which this version does not have. Give a URL such as {DEFAULT_LAN_URL}."
        )
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(f"{name} holds {url!r}, which is not a URL. Give one such as {DEFAULT_LAN_URL}.")
    return url
