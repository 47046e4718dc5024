"""One speech-to-text call: how its client routes it, the requests to send, and what their answers mean.

The sync and the async client share all of it. They only carry out the steps of `RoutedCall`.
"""

from __future__ import annotations

import copy
import random
import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic
from urllib.parse import urlsplit

import openai

from localwhisper_client import _background, request
from localwhisper_client._http import http
from localwhisper_client.cloud.attempt import CloudAttempt, lan_row, usage_of
from localwhisper_client.cloud.ledger import Ledger
from localwhisper_client.errors import CloudNotAllowed, ConfigurationError, explained
from localwhisper_client.events import Announcer, remember
from localwhisper_client.lan.answers import Expected, failed, queue_seconds
from localwhisper_client.lan.servers import ClientT, LocalServers
from localwhisper_client.routing.backend import Backend
from localwhisper_client.routing.plan import Call, Ending, Find, Outcome, Probe, Try, Verdict, Wait
from localwhisper_client.routing.policy import current, strictest
from localwhisper_client.settings import DEFAULT_LOCAL_BASE_URL, Settings, is_openai, without_credentials
from localwhisper_client.shared import openai_models

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from concurrent.futures import Future

    from localwhisper_client.lan.discovery import Discovery
    from localwhisper_client.lan.servers import LocalServer
    from localwhisper_client.lan.wake import Waker
    from localwhisper_client.routing.backend import Rules
    from localwhisper_client.routing.plan import Reply, Wake
    from localwhisper_client.routing.policy import Policy
    from localwhisper_client.settings import RoutingOptions

# With one of these arguments the SDK finds its own base URL, and accepts no other.
_OWN_ROUTE = ("provider", "data_residency", "workload_identity")
_OWN_KEY = ("api_key", "provider", "workload_identity")
_RAW = "x-stainless-raw-response"


@dataclass(frozen=True)
class Route(Generic[ClientT]):
    """How a client routes its calls. Immutable; shared with copies of the client as far as they change nothing."""

    settings: Settings
    servers: LocalServers[ClientT]
    announce: Announcer
    ledger: Ledger
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
        settings = Settings.load(environ, **options)
        return cls(
            settings,
            LocalServers(settings, kind, finder=finder, waker=waker, rules=rules),
            Announcer(options.get("on_event")),
            Ledger(settings.ledger, settings.budget),
        )

    def changed(self, options: RoutingOptions) -> Route[ClientT]:
        """Return the route of a copy: other servers only if the options say so, and never a looser policy."""
        settings, on_event = self.settings.changed(**options), options.get("on_event")
        return replace(
            self,
            settings=settings,
            servers=self.servers.with_settings(settings),
            announce=self.announce if on_event is None else Announcer(on_event),
        )

    @property
    def policy(self) -> Policy:
        """The strictest policy of the settings and of the blocks around the call."""
        return strictest([self.settings.policy, current()])

    def cloud_arguments(self, sdk: dict[str, Any], environ: Mapping[str, str], no_key: object) -> dict[str, Any]:
        """Return the arguments for the SDK's own constructor, with a base URL and, if needed, a substitute for the key.

        The SDK would take the base URL from `OPENAI_BASE_URL`, which may be the local server's. If there is no key and
        no audio may leave the LAN, `no_key` is what the SDK calls for one when the program uses the cloud after all.
        """
        arguments = dict(sdk)
        # The SDK's "not given" is falsy, and the SDK ignores an empty key or address.
        if not any(map(sdk.get, ("base_url", *_OWN_ROUTE))):
            arguments["base_url"] = self.settings.gateway or self.settings.cloud_url
        has_key = any(map(sdk.get, _OWN_KEY)) or environ.get("OPENAI_API_KEY")
        if not self.settings.policy.leaves_lan and not has_key:
            arguments["api_key"] = no_key
        return arguments

    def keeps_to_lan(self, url: str) -> bool:
        """Whether a realtime session at this URL stays on the LAN. May look its name up, for 1 s."""
        host = urlsplit(url).hostname or ""
        settings = self.settings
        if settings.named and host in {urlsplit(each).hostname for each in settings.local_base_urls}:
            return True
        # The cloud's own names need no look-up.
        return not is_openai(url) and bool(self.servers.hosts.on_lan(url, settings.connect_timeout))

    def allow_realtime(self, url: str) -> None:
        """Raise unless the policy allows a realtime session at this URL, which streams audio past the routing.

        Raises:
            CloudNotAllowed: the policy forbids it.

        """
        if self.policy.leaves_lan or self.keeps_to_lan(url):
            return
        host = urlsplit(url).hostname or ""
        raise CloudNotAllowed(
            f"A realtime session with {host} would carry audio out of the LAN, and the policy is {self.policy}: "
            "nothing was sent. Use audio.transcriptions or a session with intent=transcription, which the local server "
            "answers, or allow the cloud with LOCALWHISPER_POLICY=cloud, and policy='cloud' where the program makes "
            "the client.",
            request=http.Request("GET", url),
        )


@dataclass(frozen=True, slots=True)
class Pending:
    """Wait for work in the background, for at most so many seconds; `None` for no limit."""

    work: Future[Any]
    seconds: float | None


class Routed(Generic[ClientT]):
    """What any call does on its routes: it carries out the steps of its plan, all but the attempts themselves."""

    outcome: Outcome | None
    ending: Ending
    _route: Route[ClientT]
    _call: Call

    def steps(self) -> Generator[Try | Wait | Pending]:
        """Yield what the driver must do, until the call has ended."""
        reply: Reply = None
        with closing(self._call.plan()) as plan:
            while True:
                try:
                    step = plan.send(reply)
                except StopIteration as end:
                    self.ending = end.value
                    return
                reply = None
                if isinstance(step, Try):
                    self.outcome = None
                    yield from self._try(step)
                    reply = self.outcome
                elif isinstance(step, Wait):
                    yield step
                else:
                    work = self._begin(step)
                    yield Pending(work, step.seconds)
                    # What is not done in time is not known yet.
                    unknown = self._route.servers.backends if isinstance(step, Find) else False
                    reply = work.result() if work.done() else unknown

    def _try(self, step: Try) -> Generator[Try | Pending]:
        """Try a backend, if its address may be sent audio.

        A server that the user set for speech-to-text may be anywhere. `OPENAI_BASE_URL` may be a gateway on the
        internet, so it must be on the LAN. Its name may have to be looked up.

        Raises:
            ConfigurationError: it is not on the LAN.

        """
        settings, hosts, url = self._route.settings, self._route.servers.hosts, step.backend.name
        if step.backend.cloud or settings.named:
            yield step
            return
        started = time.monotonic()
        on_lan = hosts.known(url)
        if on_lan is None:
            seconds = settings.connect_timeout if step.seconds is None else min(settings.connect_timeout, step.seconds)
            work = _background.start(hosts.on_lan, url, seconds)
            yield Pending(work, seconds)
            on_lan = work.result() if work.done() else None
        if on_lan is None:
            self.outcome = failed(http.ConnectError(f"the name {urlsplit(url).hostname} was not found in time"), 0.0)
        elif on_lan:
            left = None if step.seconds is None else max(0.001, started + step.seconds - time.monotonic())
            yield replace(step, seconds=left)
        else:
            raise ConfigurationError(
                f"OPENAI_BASE_URL is {url}, which is not on the LAN, so it is sent no audio. Set LOCALWHISPER_BASE_URL "
                f"to the local server, such as {DEFAULT_LOCAL_BASE_URL}; or to {url}, if that should transcribe."
            )

    def _begin(self, step: Probe | Find | Wake) -> Future[Any]:
        servers = self._route.servers
        if isinstance(step, Probe):
            return servers.server(step.backend).prober.ask(self._route.announce)
        if isinstance(step, Find):
            return _background.start(servers.find, lost=step.lost)
        return _background.start(servers.wake)


class RoutedCall(Routed[ClientT]):
    """One call that a client's request options describe.

    A driver carries out the `steps`. After each `Try` it sets `outcome`; at the end it calls `record` if `records`
    says so, and `result`.
    """

    def __init__(self, route: Route[ClientT], client: Any, options: Any, files: Any, *, stream: bool) -> None:
        self._route = route
        self._client = client
        self._files = files
        self._options = request.as_sent(options)
        self.expected = Expected.of(self._options.json_data, stream=stream)
        self._timeout = client.timeout if isinstance(options.timeout, openai.NotGiven) else options.timeout
        self._azure = isinstance(client, (openai.AzureOpenAI, openai.AsyncAzureOpenAI))
        self._cloud_url = str(client.base_url).rstrip("/")
        # Speech-to-text goes to the cloud's own URL, even if other calls go to a gateway.
        gateway = route.settings.gateway
        if gateway and not client.own_cloud and self._cloud_url == gateway.rstrip("/"):
            self._cloud_url = route.settings.cloud_url.rstrip("/")
        headers = options.headers if isinstance(options.headers, dict) else {}
        raw = next((value for name, value in headers.items() if name.lower() == _RAW), None)
        self._asked_raw = raw if isinstance(raw, str) else None
        self._call = Call(
            route.servers.backends,
            Backend(without_credentials(self._cloud_url), cloud=True),
            route.policy,
            self._timeout.read if hasattr(self._timeout, "read") else self._timeout,
            time.monotonic,
            random.random,
            route.announce,
            finds=route.servers.finds,
            wakes=route.servers.wakes,
            cloud_retries=options.get_max_retries(client.max_retries),
        )

    def local_options(self, server: LocalServer[ClientT], seconds: float | None) -> Any:
        """Return the request for a local server, at the endpoint's usual path, whatever path the caller wrote."""
        mine = copy.copy(self._options)
        mine.url = request.endpoint(self._client, mine)
        if self._azure and request.fields(mine).get("model") not in openai_models.NAMES:
            # With Azure, the model is the name of the user's own deployment. Every server accepts OpenAI's.
            mine.json_data = {**request.fields(mine), "model": openai_models.WHISPER_1}
        return server.options(mine, self._files, seconds, raw=self._asked_raw or "true")

    def answered(self, raw: Any) -> Outcome:
        """Return the outcome of a local server's checked response, in the form that the caller asked for."""
        self._route.servers.hosts.warn_if_outside(raw.http_response)
        value = raw if self._asked_raw else raw.parse()
        return Outcome(
            Verdict.ANSWERED,
            value=value,
            queue_seconds=queue_seconds(raw.http_response.headers),
            audio_seconds=None if self.expected.stream else usage_of(value).seconds,
        )

    def local_fault(self, error: Exception) -> Outcome:
        """Return the outcome of a local attempt that raised; raise the error again if it is the caller's own."""
        outcome = failed(error, self._route.wall())
        if outcome is None:
            raise error
        return outcome

    def cloud_attempt(self, step: Try) -> CloudAttempt:
        """Return an attempt in the cloud: the caller's own request, within the remaining time.

        The SDK must not retry it, since each attempt first reserves its cost in the budget.
        """
        options = copy.copy(self._options)
        options.files = self._files
        options.max_retries = 0
        if self._cloud_url != str(self._client.base_url).rstrip("/"):
            options.url = f"{self._cloud_url}{request.endpoint(self._client, options)}"
        if step.seconds is not None:
            options.timeout = _capped(self._timeout, step.seconds)
        route = self._route
        return CloudAttempt(
            options,
            step.backend.name,
            route.ledger,
            route.announce,
            failed,
            route.wall(),
            self._call.reason,
            adapts=not self._azure,
        )

    @property
    def records(self) -> bool:
        """Whether `record` has something to write. A call that the cloud answered is in the ledger already."""
        answered = self.ending.outcome.verdict is Verdict.ANSWERED
        return self._route.ledger.enabled and answered and not self.ending.summary.cloud

    def record(self) -> None:
        """Write the call into the ledger. Blocks."""
        fields = request.fields(self._options)
        self._route.ledger.record(lan_row(self.ending.summary, fields, self._files, self._route.wall()))

    def result(self) -> Any:
        """Return the answer, or raise the error that explains why there is none; sets `last_call()`."""
        remember(self.ending.summary)
        if self.ending.outcome.verdict is Verdict.ANSWERED:
            return self.ending.outcome.value
        unsent = http.Request("POST", self._cloud_url)
        raise explained(self.ending, unsent, wants_cloud=self._route.settings.wants_cloud)


def _capped(timeout: Any, seconds: float) -> openai.Timeout:
    parts = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
    if hasattr(timeout, "as_dict"):
        parts = timeout.as_dict()
    return openai.Timeout(
        **{name: round(min(value, seconds), 3) if value is not None else seconds for name, value in parts.items()}
    )
