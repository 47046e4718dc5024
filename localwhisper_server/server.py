"""Composition: from the settings to the application and to uvicorn on a listening socket; signals, and the drain."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from prometheus_client import CollectorRegistry, ProcessCollector

from localwhisper_client.shared import install_command
from localwhisper_client.shared.lan_ranges import LOOPBACK
from localwhisper_server.api import routes
from localwhisper_server.api.access_control import ConnectionLimits, Rules
from localwhisper_server.api.middleware import Limits
from localwhisper_server.api.protocol import HttpProtocol, WebSocketProtocol
from localwhisper_server.operations import mdns, watchdog
from localwhisper_server.operations.host import outbound_address, own_names, server_url
from localwhisper_server.operations.metrics import Metrics, video_memory
from localwhisper_server.runtime import Runtime
from localwhisper_server.settings import Settings

if TYPE_CHECKING:
    from localwhisper_server.api.upstream import Upstream
    from localwhisper_server.observer import Observer
    from localwhisper_server.wyoming import Service

logger = logging.getLogger(__name__)

# How long responses may take after the drain before their connections are cut.
LAST_WORDS_SECONDS = 3
# More open files than this server ever needs.
MOST_FILES = 65_536
KEEP_ALIVE_SECONDS = 10
PONG_SECONDS = 120.0
# Open files that belong to no connection: pipes of decoding processes, the log, libraries.
OTHER_FILES = 256
# The connection itself, its upload on disk, and a connection to the upstream.
FILES_PER_CONNECTION = 3
# One address may hold this part of all connections: a bot's pool, or many machines behind one router.
PART_PER_ADDRESS = 8


class Misconfigured(Exception):
    """A setting cannot be used on this machine: a file that does not exist, or that holds no certificate."""


@contextlib.contextmanager
def _reading(options: str) -> Iterator[None]:
    """Raise Misconfigured, with the options' names, if a file that they name cannot be used."""
    try:
        yield
    except (OSError, ValueError) as failure:
        raise Misconfigured(f"{options}: {failure}") from failure


def access_rules(settings: Settings, names: Sequence[str]) -> Rules:
    """Return who may come in; `names` are the machine's own.

    Raises:
        Misconfigured: the file of keys cannot be read, or a key cannot be told apart in a header.

    """
    with _reading("--api-key, --api-key-file"):
        keys = settings.keys()
    return Rules(
        allow_from=settings.allow_from,
        trusted_proxies=settings.trusted_proxy,
        hosts=(*settings.allow_host, *names),
        origins=settings.cors_origin,
        keys=keys,
    )


def request_limits(settings: Settings) -> Limits:
    """Return how much one request may send, and how many one address may have open."""
    return Limits(settings.max_upload, settings.min_upload_rate, settings.upload_grace, settings.max_per_address)


def connection_limits(settings: Settings, files: int) -> ConnectionLimits:
    """Return how many connections to hold where so many files may be open.

    This machine's own connections and those of trusted proxies, which have one address for many callers, are limited
    in total alone.
    """
    total = min(ConnectionLimits().total, max((files - OTHER_FILES) // FILES_PER_CONNECTION, PART_PER_ADDRESS))
    return ConnectionLimits(total, total // PART_PER_ADDRESS, (*LOOPBACK, *settings.trusted_proxy))


def uvicorn_options(settings: Settings, limits: ConnectionLimits | None = None) -> dict[str, Any]:
    """Return what uvicorn is told about the network.

    Raises:
        Misconfigured: the certificate and its key cannot be used.

    """
    options: dict[str, Any] = {
        # Not httptools, which it would take where it is installed, and which sets no limit to a head.
        "http": partial(HttpProtocol, limits=limits or ConnectionLimits()),
        # Longer than the SDKs keep an idle connection (5 s), or one would be closed just as they send on it.
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "ws": WebSocketProtocol,
        # Compression would cost more than it saves: the sound is in base64, and the network is local.
        "ws_per_message_deflate": False,
        # A client that sends faster than this machine transcribes has its answers to pings behind its sound.
        "ws_ping_timeout": PONG_SECONDS,
        # It would believe any proxy on this machine; `access_control` has its own list.
        "proxy_headers": False,
        "server_header": False,
    }
    if settings.certfile is not None:
        # Once for the sake of a clear message, before anything slow.
        with _reading("--certfile, --keyfile"):
            for path in filter(None, (settings.certfile, settings.keyfile)):
                path.open("rb").close()  # its error names the file, which that of the line below does not
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.certfile, settings.keyfile)
        options |= {"ssl_certfile": settings.certfile, "ssl_keyfile": settings.keyfile}
    return options


def upstream(settings: Settings, keys: Sequence[str]) -> "Upstream | None":
    """Return the application that passes requests on to another server; None if no upstream is set.

    `keys` are this server's own, which never go to the upstream.

    Raises:
        Misconfigured: the upstream's key cannot be read.

    """
    if settings.upstream is None:
        return None
    # Imported here because the SDK's HTTP library is slow to import.
    from localwhisper_server.api.upstream import Upstream  # noqa: PLC0415 - only where it is needed, since it is slow to import

    with _reading("--upstream-api-key-file"):
        own_key = settings.upstream_key()
    return Upstream(settings.upstream, keys=keys, own_key=own_key)


def wyoming_service(settings: Settings, rules: Rules, runtime: Runtime, observer: "Observer") -> "Service | None":
    """Return what answers Home Assistant; None if no port is set for it.

    Raises:
        Misconfigured: the extra is not installed.

    """
    if settings.wyoming is None:
        return None
    try:
        from localwhisper_server.wyoming import Service  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as missing:
        raise Misconfigured(f"--wyoming needs {missing.name}: {install_command('wyoming')}") from missing
    if rules.keys:
        logger.warning("--wyoming: its protocol has no keys, so that addresses of --allow-from may call without one")
    host, _, port = settings.wyoming.rpartition(":")
    host = host.strip("[]") or settings.host
    return Service(runtime, observer, host, int(port), (*LOOPBACK, *rules.allow_from), settings.max_upload)


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one, at most to MOST_FILES, and return it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (MOST_FILES if limit == resource.RLIM_INFINITY else min(limit, MOST_FILES) for limit in limits)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, limits[1]))
        except (OSError, ValueError):  # macOS allows less than its hard limit
            return soft
    return hard


def url(listening: socket.socket, *, tls: bool = False) -> str:
    """Return the URL of a bound socket; if it listens on all addresses, with the one that others most likely use."""
    host, port = listening.getsockname()[:2]
    return server_url(outbound_address() if host in ("0.0.0.0", "::") else host, port, tls=tls)


def run(
    settings: Settings,
    listening: socket.socket,
    /,
    *,
    environ: Mapping[str, str],
    make_runtime: Callable[..., Runtime] = Runtime,
) -> bool:
    """Serve on a bound socket until a signal stops it; return False if a batch is still in flight.

    `environ` says whether systemd started the server. A test gives a `make_runtime` with another engine.

    Raises:
        Misconfigured: a certificate or a file of keys cannot be used, or the upstream's key cannot be read.
        ModelError, RuntimeError, ValueError, OSError: the model could not be found or loaded.

    """
    notify = partial(watchdog.notify, environ.get("NOTIFY_SOCKET"))
    watched = watchdog.watchdog_seconds(environ, os.getpid())
    period = watched or watchdog.WATCHDOG_SECONDS
    rules = access_rules(settings, own_names())
    tls = settings.certfile is not None
    other_api = upstream(settings, rules.keys)
    options = uvicorn_options(settings, connection_limits(settings, raise_file_limit()))
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics = Metrics(registry)
    runtime = make_runtime(
        settings, environ=environ, stuck_after=period / 2, self_test=watched is not None, observer=metrics
    )
    for model in runtime.models:
        metrics.read_at_scrape(model.names[0], model)
    metrics.read_video_memory(video_memory())
    home_assistant = wyoming_service(settings, rules, runtime, metrics)

    def load_model() -> None:
        try:
            runtime.start()
            notify("READY=1")
        except Exception as failure:  # noqa: BLE001 - raised again below, in the main thread
            runtime.failure = failure
            server.should_exit = True

    @contextlib.asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        # In a thread: the server answers while the model loads.
        threading.Thread(target=load_model, name="localwhisper-load", daemon=True).start()
        logger.info("listening on %s and loading the model", url(listening, tls=tls))
        seconds = period / watchdog.CHECKS_PER_WATCHDOG
        watching = asyncio.create_task(watchdog.watch(runtime.healthy, notify, seconds=seconds))
        async with contextlib.AsyncExitStack() as stack:
            if other_api is not None:
                stack.push_async_callback(other_api.aclose)
            if home_assistant is not None:
                port = await stack.enter_async_context(home_assistant.listening())
                if settings.announce and port:
                    announced = mdns.announced(home_assistant.host, port, runtime.model, service=mdns.WYOMING)
                    await stack.enter_async_context(announced)
            if settings.announce:
                host, port = listening.getsockname()[:2]
                await stack.enter_async_context(mdns.announced(host, port, runtime.model, tls=tls))
            yield
        watching.cancel()

    app = routes.create_app(
        runtime,
        rules=rules,
        limits=request_limits(settings),
        observer=metrics,
        exposition=metrics.exposition,
        upstream=other_api,
        lifespan=lifespan,
    )
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", **options)
    server = DrainingServer(config, runtime, notify, drain=settings.drain)
    server.run(sockets=[listening])
    if runtime.failure is not None:
        runtime.stop()
        raise runtime.failure
    return runtime.stop()


class DrainingServer(uvicorn.Server):
    """uvicorn that finishes accepted requests within `drain` seconds when it is stopped.

    SIGTERM and SIGHUP (a closed terminal) stop it. A second SIGTERM, or Ctrl-C at any time, ends the process at once by
    `leave`. A second SIGHUP does not: shells send it twice.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        runtime: Runtime,
        notify: Callable[[str], object],
        *,
        drain: float,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = int(drain) + LAST_WORDS_SECONDS
        self._runtime = runtime
        self._notify = notify
        self._drain = drain
        self._leave = leave

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin to stop, or end the process."""
        if sig == signal.SIGINT:
            self._leave(128 + sig)
        elif self.should_exit and sig != signal.SIGHUP:
            self._leave(0)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handle SIGHUP as well, unless it is ignored, as under nohup."""
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGHUP) if in_main else signal.SIG_IGN
        if before != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self.handle_exit)
        try:
            with super().capture_signals():
                yield
        finally:
            if before != signal.SIG_IGN:
                signal.signal(signal.SIGHUP, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; log in one line why connections cannot be accepted."""
        asyncio.get_running_loop().set_exception_handler(_loop_failure)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests finish within the drain, then refuse the rest."""
        if running := self._runtime.open_requests:
            logger.info("stopping; %d request(s) have %g s to finish", running, self._drain)
        else:
            logger.info("stopping")
        seconds = self._drain + 2 * LAST_WORDS_SECONDS
        self._notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")
        self._runtime.drain(self._drain)
        giving_up = asyncio.get_running_loop().call_later(self._drain, self._runtime.give_up)
        try:
            await super().shutdown(sockets)
        finally:
            giving_up.cancel()


def _loop_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that no code caught: a lack of open files in one line, all else as asyncio does."""
    failure = context.get("exception")
    if isinstance(failure, OSError) and failure.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
        # With asyncio's logger, which logs a message once a minute.
        logging.getLogger("asyncio").error("no connection can be accepted at the moment: %s", failure.strerror)
    else:
        loop.default_exception_handler(context)
