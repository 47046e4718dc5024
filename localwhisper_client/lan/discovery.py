"""Finds local servers by mDNS, and remembers where they were.

A server started with `--announce` announces the service `_localwhisper._tcp.local.`; `path`, `version` and `model` are
in its TXT record. The answer is kept in the user's state folder, so that a restart needs no search. `forget` makes the
next `urls` search again, for a server that has a new address.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import math
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from localwhisper_client import _background
from localwhisper_client.errors import ConfigurationError
from localwhisper_client.events import log
from localwhisper_client.lan.health import is_healthy
from localwhisper_client.settings import health_url, state_folder
from localwhisper_client.shared import install_command, lan_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SERVICE = "_localwhisper._tcp.local."
SECONDS = 2.0
"""The most that a search takes. On a quiet network an answer comes within a fifth of it."""
PAUSE = 30.0
"""Seconds between two searches that find nothing: while the server is off, not every call makes a search."""
# Seconds to wait for more servers after the first answer.
_MORE = 0.3
# Seconds in which an announced address must answer.
_REACH_TIMEOUT = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """A server that announced itself."""

    name: str
    urls: tuple[str, ...]
    """Its base URL at each of its addresses."""
    version: str = ""
    model: str = ""


def browse(
    seconds: float = SECONDS, *, everyone: bool = False, interfaces: Sequence[str] | None = None
) -> tuple[Found, ...]:
    """Search the network for servers; blocks for at most `seconds`.

    Returns soon after the first answer unless `everyone` is set. `interfaces` are the addresses of this machine to ask
    from; all of them by default.

    Raises:
        ConfigurationError: the extra `discovery` is not installed.
        OSError: there is no network to ask.

    """
    zeroconf = _zeroconf()
    until = time.monotonic() + seconds
    heard: dict[str, Found] = {}
    changed = threading.Condition()

    def hear(zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if state_change.name == "Removed":
            return
        # `get_service_info` blocks, and this is the thread that would receive the answer.
        threading.Thread(target=resolve, args=(zeroconf, service_type, name), daemon=True).start()

    def resolve(network: Any, service_type: str, name: str) -> None:
        info = network.get_service_info(service_type, name, timeout=max(1, int((until - time.monotonic()) * 1000)))
        found = None if info is None else _found(info)
        if found is not None:
            with changed:
                heard[name] = found
                changed.notify_all()

    try:
        network = zeroconf.Zeroconf(interfaces=list(interfaces) if interfaces else zeroconf.InterfaceChoice.All)
    except RuntimeError as error:  # no interface is up
        raise OSError(str(error)) from error
    try:
        browser = zeroconf.ServiceBrowser(network, SERVICE, handlers=[hear])
        with changed:
            changed.wait_for(lambda: bool(heard), timeout=max(0.0, until - time.monotonic()))
            if heard or everyone:
                left = max(0.0, until - time.monotonic())
                changed.wait_for(lambda: False, timeout=left if everyone else min(_MORE, left))
            result = tuple(heard[name] for name in sorted(heard))
        browser.cancel()
    finally:
        network.close()
    return result


def _zeroconf() -> Any:
    try:
        import zeroconf  # noqa: PLC0415 - an extra, and half a second of import
    except ModuleNotFoundError:
        raise ConfigurationError(
            f"Finding the local server needs zeroconf. Install it with: {install_command('discovery')} - or "
            "set LOCALWHISPER_BASE_URL to the server's address, such as http://pc:5000/v1."
        ) from None
    return zeroconf


def _found(info: Any) -> Found | None:
    properties = {
        key.decode("utf-8", "replace"): (value or b"").decode("utf-8", "replace")
        for key, value in info.properties.items()
    }
    path = properties.get("path", "/v1")
    scheme = "https" if properties.get("scheme") == "https" else "http"
    urls = tuple(
        f"{scheme}://{f'[{address}]' if address.version == 6 else address}:{info.port}{path.rstrip('/')}"  # noqa: PLR2004 - IPv6
        for address in map(ipaddress.ip_address, info.parsed_addresses())
        # An announced address on the internet gets no audio. A link-local IPv6 address would need a zone.
        if lan_ranges.on_lan(address) and not (address.version == 6 and address.is_link_local)  # noqa: PLR2004 - IPv6
    )
    if not urls or not path.startswith("/"):
        return None
    if scheme == "https" and info.server.endswith(".local."):
        # A certificate is most likely for the name. The first URL that answers is used.
        urls = (f"https://{info.server.rstrip('.')}:{info.port}{path.rstrip('/')}", *urls)
    return Found(
        info.name.removesuffix("." + SERVICE), urls, properties.get("version", ""), properties.get("model", "")
    )


def reachable(
    found: Sequence[Found], healthy: Callable[[str, float], tuple[bool, str]] = is_healthy
) -> tuple[str, ...]:
    """Return one base URL for each server that answers: the first of its addresses that does.

    A server in a container or a virtual machine also announces addresses that other machines cannot reach.
    """
    answering = (
        next((url for url in server.urls if healthy(health_url(url), _REACH_TIMEOUT)[0]), None) for server in found
    )
    return tuple(url for url in answering if url)


def search() -> tuple[str, ...]:
    """Return the base URLs of the servers that announce themselves and answer; takes about two seconds at most."""
    return reachable(browse())


class Discovery:
    """The servers that `auto` stands for; thread-safe.

    Args:
        path: the file that keeps the last answer for the next start; `None` for no file.
        find: returns the base URLs found now, in bounded time.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        path: Path | None,
        find: Callable[[], tuple[str, ...]] = search,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._find, self._clock = path, find, clock
        _background.renewed(self._renew)
        self._urls: tuple[str, ...] | None = None
        self._trusted = False
        self._searched_at = -math.inf

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def urls(self) -> tuple[str, ...]:
        """Return the servers' base URLs: the remembered ones, or after `forget` the ones found by a new search.

        If a search finds nothing, the last answer stays, and the next search is half a minute away. Blocks for as long
        as a search takes; calls that come meanwhile share its answer.

        Raises:
            ConfigurationError: the extra `discovery` is not installed.

        """
        with self._lock:
            if self._urls is None:
                self._urls = self._read()
                self._trusted = bool(self._urls)
            if not self._trusted and self._clock() - self._searched_at >= PAUSE:
                self._urls = self._searched(self._urls)
            return self._urls

    def forget(self) -> None:
        """Make the next `urls` search again: a server cannot be reached at its remembered URL."""
        with self._lock:
            self._urls = self._urls or ()
            self._trusted = False

    def _searched(self, before: tuple[str, ...]) -> tuple[str, ...]:
        try:
            found = self._find()
        except OSError as failure:
            log.warning("could not search the LAN for a server: %s", failure)
            found = ()
        self._searched_at = self._clock()
        self._trusted = bool(found)
        if found and found != before:
            log.info("found on the LAN: %s", ", ".join(found))
            self._write(found)
        return found or before

    def _read(self) -> tuple[str, ...]:
        try:
            urls = json.loads(self._path.read_bytes())["urls"] if self._path else []
            # The file must not name a server outside the LAN either.
            return tuple(url for url in urls if lan_ranges.settled(urlsplit(url).hostname or ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return ()  # no file, or not one of ours: search instead

    def _write(self, urls: tuple[str, ...]) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".discovered.")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"urls": urls}, file)
            Path(name).replace(self._path)
        except OSError as failure:
            log.warning("could not remember the local server's address: %s", failure)


@functools.cache
def shared() -> Discovery:
    """Return the `Discovery` that all clients of this process share, so that they search once.

    Raises:
        ConfigurationError: the extra `discovery` is not installed.

    """
    _zeroconf()
    return Discovery(state_folder(os.environ) / "discovered.json")
