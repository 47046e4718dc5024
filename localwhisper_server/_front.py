"""What stands between the socket and the routes, made from the settings: rules, certificate, upstream, traces."""

import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from localwhisper_server.api.access_control import Rules
from localwhisper_server.api.asgi import App
from localwhisper_server.api.limits import Floor
from localwhisper_server.api.network import LOOPBACK
from localwhisper_server.api.protocol import HttpProtocol, Room
from localwhisper_server.settings import Settings

KEEP_ALIVE_SECONDS = 10
# Open files that belong to no connection: decoders' pipes, the log, libraries.
OTHER_FILES = 256
# What a connection may need: itself, its upload on disk, and a connection to the upstream.
FILES_PER_CONNECTION = 3
# One address may hold this part of all connections: a bot's pool, or a LAN serverhold behind a router.
PART_PER_ADDRESS = 8


class Misconfigured(Exception):
    """A setting that this machine cannot follow: a file that is not there, a certificate that is none."""


def own_names() -> tuple[str, ...]:
    """Return what this machine is called: its name, and in full."""
    return tuple(dict.fromkeys(name.lower() for name in (socket.gethostname(), socket.getfqdn())))


def own_address() -> str:
    """Return this machine's address towards the network it is connected to; the loopback where it is to none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Nothing is sent: a datagram socket only looks up which way it would go. The address is documentation's.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def rules(settings: Settings, names: Sequence[str]) -> Rules:
    """Return who may come in; `names` are the machine's own.

    Raises:
        Misconfigured: the file of keys cannot be read, or a key cannot be told apart in a header.

    """
    try:
        keys = settings.keys()
    except (OSError, ValueError) as failure:
        raise Misconfigured(f"--api-key, --api-key-file: {failure}") from failure
    return Rules(
        allow_from=settings.allow_from,
        trusted_proxies=settings.trusted_proxy,
        hosts=(*settings.allow_host, *names),
        origins=settings.cors_origin,
        keys=keys,
        max_upload=settings.max_upload,
        floor=Floor(settings.min_upload_rate, settings.upload_grace),
        per_address=settings.max_per_address,
    )


def room(settings: Settings, files: int) -> Room:
    """Return how many connections to hold where so many files may be open.

    This machine's own connections and those of trusted proxies, which have one address for many callers, are limited
    in total alone.
    """
    total = min(Room().total, max((files - OTHER_FILES) // FILES_PER_CONNECTION, PART_PER_ADDRESS))
    return Room(total, total // PART_PER_ADDRESS, (*LOOPBACK, *settings.trusted_proxy))


def web_options(settings: Settings, room: Room | None = None) -> dict[str, Any]:
    """Return what uvicorn is told about the network.

    Raises:
        Misconfigured: the certificate and its key cannot be used.

    """
    options: dict[str, Any] = {
        # Not httptools, which it would take where it is installed, and which sets no limit to a head.
        "http": partial(HttpProtocol, room=room or Room()),
        # Longer than the SDKs keep an idle connection (5 s), or one would be closed just as they send on it.
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "ws": "none",
        # It would believe any proxy on this machine; whom to believe is `network`'s business.
        "proxy_headers": False,
        "server_header": False,
    }
    if settings.certfile is not None:
        try:
            # Once for the sake of a clear message, before anything slow.
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.certfile, settings.keyfile)
        except (OSError, ssl.SSLError) as failure:
            raise Misconfigured(f"--certfile, --keyfile: {failure}") from failure
        options |= {"ssl_certfile": settings.certfile, "ssl_keyfile": settings.keyfile}
    return options


class Surroundings:
    """What a server may have around it, and what has to be closed with it.

    `upstream` is an application for what is not ours, None where nothing is passed on.

    Raises:
        Misconfigured: the traces' packages are not installed, or the upstream's key cannot be read.

    """

    def __init__(self, settings: Settings, keys: Sequence[str]) -> None:
        self.upstream: Any = None
        self._tracer_provider: Any = None
        if settings.upstream is not None:
            # Late, here and below: the SDK and its HTTP library are slow to import.
            from localwhisper_server.api.upstream import Upstream  # noqa: PLC0415

            try:
                own_key = settings.upstream_key()
            except (OSError, ValueError) as failure:
                raise Misconfigured(f"--upstream-api-key-file: {failure}") from failure
            self.upstream = Upstream(settings.upstream, keys=keys, own_key=own_key)
        if settings.otlp_endpoint is not None:
            from localwhisper_server.operations import tracing  # noqa: PLC0415

            try:
                self._tracer_provider = tracing.provider(settings.otlp_endpoint)
            except tracing.NotInstalled as failure:
                raise Misconfigured(str(failure)) from failure

    def around(self, app: App) -> App:
        """Return the application with a span for each request, where there are traces."""
        if self._tracer_provider is None:
            return app
        from localwhisper_server.operations import tracing  # noqa: PLC0415

        return tracing.traced(app, self._tracer_provider)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close all of it at the end of the block."""
        try:
            yield
        finally:
            if self.upstream is not None:
                await self.upstream.aclose()
            if self._tracer_provider is not None:
                self._tracer_provider.shutdown()
