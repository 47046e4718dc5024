"""Settings of the client: constructor arguments and environment in, one frozen object out."""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, overload
from urllib.parse import urlsplit, urlunsplit

from localwhisper_client.cloud.budget import Budget
from localwhisper_client.errors import ConfigurationError
from localwhisper_client.lan.hooks import AUTO
from localwhisper_client.routing.policy import Policy
from localwhisper_client.shared.lan_ranges import named_like_one

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_LOCAL_BASE_URL = "http://localhost:5000/v1"
DEFAULT_CLOUD_URL = "https://api.openai.com/v1"
DEFAULT_CONNECT_TIMEOUT = 1.0
LEDGER_NAME = "ledger.sqlite3"

# RFC 3490 §3.1: what counts as a dot between labels.
_FULL_STOPS = dict.fromkeys(map(ord, "\u3002\uff0e\uff61"), ".")
# Azure's endpoints are OpenAI's models on somebody else's machine: as far from the LAN server.
_OPENAI_DOMAINS = ("openai.com", "openai.azure.com")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the LAN server is, where the cloud is, and what may go where."""

    local_base_urls: tuple[str, ...] = (DEFAULT_LOCAL_BASE_URL,)
    """Base URLs of the servers on the LAN, without a final slash; `auto` for those that are found."""
    local_api_key: str | None = field(default=None, repr=False)
    """The key the LAN server's servers want; `None` sends none."""
    policy: Policy | None = None
    """What the environment asks for; `None` where it is silent."""
    cloud_url: str = DEFAULT_CLOUD_URL
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    """Seconds a server on the LAN has to accept a connection."""
    wake: str | None = None
    """The machine to wake on an outage, `AA:BB:CC:DD:EE:FF[@host]`."""
    ledger: Path | None = None
    """Where calls are written down; `None` for nowhere."""
    budget: Budget | None = None
    """What may be spent on the cloud; `None` for no limit."""
    named: bool = True
    """Whether the user named these servers for speech; `OPENAI_BASE_URL` alone may be any gateway's."""
    gateway: str | None = None
    """Where everything goes that is not speech-to-text, if not to `cloud_url`: `OPENAI_BASE_URL`, as the SDK has it."""

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str],
        *,
        local_base_url: str | None = None,
        local_api_key: str | None = None,
        connect_timeout: float | None = None,
    ) -> Settings:
        """Read the environment; arguments win over it.

        Variables: `LOCALWHISPER_BASE_URL` (several, separated by commas), else `OPENAI_BASE_URL` where it points away
        from OpenAI; `LOCALWHISPER_API_KEY`; `LOCALWHISPER_POLICY`; `LOCALWHISPER_CLOUD_BASE_URL`;
        `LOCALWHISPER_WAKE`; `LOCALWHISPER_LEDGER` (a path, or `1` for the usual place; a budget without one uses that
        too); `LOCALWHISPER_CLOUD_BUDGET` (`5.00/month`, `0.50/day`).

        Raises:
            ConfigurationError: a value cannot be used; the message names it and says what would do.

        """
        name, value = "local_base_url", local_base_url
        if not value:
            name, value = "LOCALWHISPER_BASE_URL", _set(environ, "LOCALWHISPER_BASE_URL")
        if not value:
            name, value = "OPENAI_BASE_URL", _set(environ, "OPENAI_BASE_URL")
            if value and is_openai(value):
                value = None
        named = not value or name != "OPENAI_BASE_URL"
        local_base_urls = tuple(
            _local_base_url(name, part.strip()) for part in (value or DEFAULT_LOCAL_BASE_URL).split(",") if part.strip()
        )
        cloud_url = _base_url(
            "LOCALWHISPER_CLOUD_BASE_URL", _set(environ, "LOCALWHISPER_CLOUD_BASE_URL") or DEFAULT_CLOUD_URL
        )
        gateway = _set(environ, "OPENAI_BASE_URL")
        # Not the LAN server, which answers nothing but speech.
        if gateway and named_like_one(_host(gateway)) and gateway.rstrip("/") in local_base_urls:
            gateway = None
        budget = _budget("LOCALWHISPER_CLOUD_BUDGET", _set(environ, "LOCALWHISPER_CLOUD_BUDGET"))
        settings = cls(
            local_base_urls=local_base_urls,
            local_api_key=local_api_key or _set(environ, "LOCALWHISPER_API_KEY"),
            policy=parse_policy("LOCALWHISPER_POLICY", _set(environ, "LOCALWHISPER_POLICY")),
            cloud_url=cloud_url,
            named=named,
            gateway=gateway,
            connect_timeout=DEFAULT_CONNECT_TIMEOUT if connect_timeout is None else connect_timeout,
            wake=_set(environ, "LOCALWHISPER_WAKE"),
            ledger=_ledger("LOCALWHISPER_LEDGER", environ, budget),
            budget=budget,
        )
        settings.check(name)
        return settings

    def check(self, name: str) -> None:
        """Raise `ConfigurationError` where the settings contradict each other; `name` is what named the servers."""
        if not self.local_base_urls:
            raise ConfigurationError(f"{name} names no server. Give a URL such as {DEFAULT_LOCAL_BASE_URL}.")
        if self.connect_timeout <= 0:
            raise ConfigurationError(f"connect_timeout must be more than 0 seconds, not {self.connect_timeout}.")
        for url in self.local_base_urls:
            # Fails closed: under local_only this URL would carry audio off the LAN.
            if is_openai(url) or url == self.cloud_url:
                raise ConfigurationError(
                    f"{name} must name a server on the LAN, but {url} is the cloud. To let calls go there when the "
                    "lan is silent, set LOCALWHISPER_POLICY=cloud instead."
                )


@overload
def parse_policy(name: str, value: str) -> Policy: ...
@overload
def parse_policy(name: str, value: str | None) -> Policy | None: ...
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
    # In the letters that are looked up: wide ones and some other full stops mean the same ones.
    host = unicodedata.normalize("NFKC", _host(url)).translate(_FULL_STOPS).rstrip(".")
    return any(host == domain or host.endswith("." + domain) for domain in _OPENAI_DOMAINS)


def _host(url: str) -> str:
    try:
        return urlsplit(url.strip()).hostname or ""
    except ValueError:
        return ""


def health_url(base_url: str, path: str = "/health") -> str:
    """Return where a server with this base URL answers for its health: beside its `/v1`, not under it."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix("/v1") + path))


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
        return state_folder(environ) / LEDGER_NAME
    return Path(value.strip()).expanduser()


def _budget(name: str, value: str | None) -> Budget | None:
    try:
        return None if value is None else Budget.parse(value)
    except ValueError:
        raise ConfigurationError(f"{name} is {value!r}, which is not a budget. Use 5.00/month or 0.50/day.") from None


def _ledger(name: str, environ: Mapping[str, str], budget: Budget | None) -> Path | None:
    value = _set(environ, name)
    path = None if value is None and budget is None else ledger_path(value or "", environ)
    if path is None and budget is not None:
        raise ConfigurationError(f"{name} is {value!r}, but a budget needs a ledger. Unset one of the two.")
    return path


def _set(environ: Mapping[str, str], name: str) -> str | None:
    # A variable set to nothing is how people unset one in a compose file.
    return environ.get(name, "").strip() or None


def _local_base_url(name: str, value: str) -> str:
    return AUTO if value.lower() == AUTO else _base_url(name, value)


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
    # `HTTPS` means `https` to everybody, so it has to mean it here, where certificates are checked by that.
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host.lower()}"))
