"""Finds the servers on the LAN by mDNS, and remembers where they were.

A server that was started with `--announce` says `_localwhisper._tcp.local.`; the TXT record has `path`, `version` and
`model`. The answer is kept in the user's state folder, so that the next start finds the LAN server at once; a server that
moved to another address is found by `forget` and the next `urls`.
"""

from __future__ import annotations

import ipaddress
import json
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from localwhisper_client import _forks
from localwhisper_client.errors import ConfigurationError
from localwhisper_client.events import log
from localwhisper_client.lan.probe import is_well
from localwhisper_client.settings import health_url, state_folder
from localwhisper_client.shared import lan_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SERVICE = "_localwhisper._tcp.local."
SECONDS = 2.0
"""How long a search may take: on a quiet network an answer is there in a fifth of that."""
PAUSE = 30.0
"""Seconds between two searches that find nothing: a box that is off must not cost every call a search."""
# After the first answer, the others on the network are close behind.
_GRACE = 0.3
_REACHES = 0.5


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
    """Ask the network who serves; blocks for at most `seconds`, and that long only for `everyone` or nobody.

    `interfaces` are the addresses of this machine to ask from; all of them by default.

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
        # On a thread of the browser's, where its own answers cannot be waited for.
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
    except RuntimeError as error:  # what it raises where no interface is up
        raise OSError(str(error)) from error
    try:
        browser = zeroconf.ServiceBrowser(network, SERVICE, handlers=[hear])
        with changed:
            changed.wait_for(lambda: bool(heard), timeout=max(0.0, until - time.monotonic()))
            if heard or everyone:
                left = max(0.0, until - time.monotonic())
                changed.wait_for(lambda: False, timeout=left if everyone else min(_GRACE, left))
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
            "Finding the LAN server by itself needs zeroconf. Install it with: pip install 'localwhisper-lan[discovery]' "
            "- or set LOCALWHISPER_BASE_URL to the server's address, such as http://pc:5000/v1."
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
        f"{scheme}://{f'[{address}]' if address.version == 6 else address}:{info.port}{path.rstrip('/')}"  # noqa: PLR2004
        for address in map(ipaddress.ip_address, info.parsed_addresses())
        # Fails closed: an announced address on the internet gets no audio. One of the link alone needs a zone as well.
        if lan_ranges.on_lan(address) and not (address.version == 6 and address.is_link_local)  # noqa: PLR2004
    )
    if not urls or not path.startswith("/"):
        return None
    if scheme == "https" and info.server.endswith(".local."):
        # What a certificate is most likely for; the first address that answers is the one that is used.
        urls = (f"https://{info.server.rstrip('.')}:{info.port}{path.rstrip('/')}", *urls)
    return Found(
        info.name.removesuffix("." + SERVICE), urls, properties.get("version", ""), properties.get("model", "")
    )


def reachable(found: Sequence[Found], well: Callable[[str, float], tuple[bool, str]] = is_well) -> tuple[str, ...]:
    """Return one base URL per server: the first of its addresses that answers; servers that do not are left out.

    A server in a container or a virtual machine announces addresses that nobody else can reach.
    """
    answering = (next((url for url in server.urls if well(health_url(url), _REACHES)[0]), None) for server in found)
    return tuple(url for url in answering if url)


def search() -> tuple[str, ...]:
    """Return the base URLs of the servers that announce themselves and answer, in about two seconds at most."""
    return reachable(browse())


def default_path(environ: Mapping[str, str]) -> Path:
    """Return the file in which the last answer is kept: beside the ledger, in the user's folder for state."""
    return state_folder(environ) / "discovered.json"


class Discovery:
    """The servers on the LAN as `auto` knows them; shared by threads.

    Args:
        path: where the last answer is kept between starts; `None` keeps it nowhere.
        find: returns the base URLs that are there now, in bounded time.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        path: Path | None,
        find: Callable[[], tuple[str, ...]] = search,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._find, self._clock = path, find, clock
        _forks.renewed(self._renew)
        self._urls: tuple[str, ...] = ()
        self._trusted = False
        self._searched_at: float | None = None
        self._started = False

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def urls(self) -> tuple[str, ...]:
        """Return the servers' base URLs: those remembered, or after `forget` those found; empty if never any.

        A search that finds nothing leaves the last answer standing, and is not made again for half a minute. Blocks
        for as long as a search takes; whoever asks meanwhile shares its answer.

        Raises:
            ConfigurationError: the extra `discovery` is not installed.

        """
        with self._lock:
            if not self._started:
                self._started = True
                self._urls = self._read()
                self._trusted = bool(self._urls)
            if not self._trusted and self._may_search():
                self._search()
            return self._urls

    def forget(self) -> None:
        """Say that a server was not where it should be: the next `urls` looks again."""
        with self._lock:
            self._started = True
            self._trusted = False

    def _may_search(self) -> bool:
        return self._searched_at is None or self._clock() - self._searched_at >= PAUSE

    def _search(self) -> None:
        try:
            found = self._find()
        except OSError as failure:
            log.warning("could not look for a server on the LAN: %s", failure)
            found = ()
        self._searched_at = self._clock()
        if found:
            self._trusted = True
            if found != self._urls:
                log.info("found on the LAN: %s", ", ".join(found))
                self._urls = found
                self._write()

    def _read(self) -> tuple[str, ...]:
        try:
            urls = json.loads(self._path.read_bytes())["urls"] if self._path else []
            # What is remembered is trusted no more than what is announced.
            return tuple(url for url in urls if lan_ranges.settled(urlsplit(url).hostname or ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # Nothing there, or nothing that can be read: it is only a memory.
            return ()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".discovered.")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"urls": list(self._urls)}, file)
            Path(name).replace(self._path)
        except OSError as failure:
            log.warning("could not remember where the LAN server is: %s", failure)


_shared: list[Discovery] = []
_sharing = threading.Lock()


def resolver() -> Discovery:
    """Return the one resolver of this process, so that its clients search once.

    Raises:
        ConfigurationError: the extra `discovery` is not installed.

    """
    with _sharing:
        if not _shared:
            _zeroconf()
            _shared.append(Discovery(default_path(os.environ)))
        return _shared[0]
