"""One speech-to-text call: the requests to send, and what their answers mean. Shared by both clients."""

from __future__ import annotations

import copy
import random
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic
from urllib.parse import urlsplit

import openai

from localwhisper_client import _background
from localwhisper_client._http import http
from localwhisper_client.cloud.attempt import CloudAttempt, lan_row, usage_of
from localwhisper_client.cloud.models import MODELS
from localwhisper_client.errors import ConfigurationError, explained
from localwhisper_client.events import LastCall, remember
from localwhisper_client.lan.classification import Expected, failed, queue_seconds
from localwhisper_client.lan.resolution import needs_look_up
from localwhisper_client.lan.servers import ClientT
from localwhisper_client.routing import endpoints
from localwhisper_client.routing.plan import Backend, Call, Ending, Find, Outcome, Probe, Try, Verdict, Wait
from localwhisper_client.routing.policy import current, strictest
from localwhisper_client.settings import DEFAULT_LOCAL_BASE_URL, without_credentials

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Future

    from localwhisper_client.lan.servers import LocalServer
    from localwhisper_client.route import Route
    from localwhisper_client.routing.plan import Reply, Wake

# A model name that every server of OpenAI's API accepts.
_ANY_MODEL = "whisper-1"
_RAW = "x-stainless-raw-response"


@dataclass(frozen=True, slots=True)
class Pending:
    """Wait for work in the background, for at most so many seconds; `None` for no limit."""

    work: Future[Any]
    seconds: float | None


@dataclass
class RoutedCall(Generic[ClientT]):
    """One call: the requests to send, and what their answers mean."""

    route: Route[ClientT]
    client: Any
    options: Any
    """The request as it is sent, with `extra_body` among its fields."""
    files: Any
    expected: Expected
    timeout: Any
    cloud_url: str
    cloud_retries: int
    outcome: Outcome | None = None
    """The outcome of the last `Try`; the driver sets it."""
    call: Call = field(init=False)
    ending: Ending = field(init=False)

    def __post_init__(self) -> None:
        headers = self.options.headers if isinstance(self.options.headers, dict) else {}
        raw = next((value for name, value in headers.items() if name.lower() == _RAW), None)
        self.asked_raw = raw if isinstance(raw, str) else None
        self.azure = isinstance(self.client, (openai.AzureOpenAI, openai.AsyncAzureOpenAI))

    @classmethod
    def of(cls, route: Route[ClientT], client: Any, options: Any, files: Any, *, stream: bool) -> RoutedCall[ClientT]:
        """Return the call that a client's request options describe."""
        settings = route.servers.settings
        cloud_url = str(client.base_url)
        # Speech-to-text goes to the cloud's own URL, even if other calls go to a gateway.
        if settings.gateway and not client.own_cloud and cloud_url.rstrip("/") == settings.gateway.rstrip("/"):
            cloud_url = settings.cloud_url
        timeout = client.timeout if isinstance(options.timeout, openai.NotGiven) else options.timeout
        sent = endpoints.as_sent(options, openai.Omit)
        expected = Expected.of(sent.json_data, stream=stream)
        return cls(
            route, client, sent, files, expected, timeout, cloud_url, options.get_max_retries(client.max_retries)
        )

    def steps(self) -> Generator[Try | Wait | Pending]:
        """Yield what the driver must do, until the call has ended. After a `Try` the driver sets `outcome`."""
        route = self.route
        self.call = Call(
            route.servers.backends,
            Backend(without_credentials(self.cloud_url).rstrip("/"), cloud=True),
            strictest([route.policy, current()]),
            self.timeout.read if hasattr(self.timeout, "read") else self.timeout,
            time.monotonic,
            random.random,
            route.announce,
            finds=route.servers.finds,
            wakes=route.servers.wakes,
            cloud_retries=self.cloud_retries,
        )
        reply: Reply = None
        with closing(self.call.plan()) as plan:
            while True:
                try:
                    step = plan.send(reply)
                except StopIteration as end:
                    self.ending = end.value
                    return
                if isinstance(step, Try):
                    self.outcome = None
                    yield step
                    reply = self.outcome
                elif isinstance(step, Wait):
                    yield step
                    reply = None
                else:
                    work = self._begin(step)
                    yield Pending(work, step.seconds)
                    # What is not done in time is not known yet.
                    unknown = route.servers.backends if isinstance(step, Find) else False
                    reply = work.result() if work.done() else unknown

    def _begin(self, step: Probe | Find | Wake) -> Future[Any]:
        servers = self.route.servers
        if isinstance(step, Probe):
            return servers.server(step.backend).prober.ask(self.route.announce)
        return (
            _background.start(servers.find, lost=step.lost)
            if isinstance(step, Find)
            else _background.start(servers.wake)
        )

    def local_options(self, server: LocalServer[ClientT], seconds: float | None) -> Any:
        """Return the request for a local server, at the endpoint's usual path, whatever path the caller wrote."""
        mine = copy.copy(self.options)
        mine.url = endpoints.endpoint(self.client, self.options)
        if self.azure and endpoints.fields(mine).get("model") not in MODELS:
            # With Azure, the model is the name of the user's own deployment.
            mine.json_data = {**endpoints.fields(mine), "model": _ANY_MODEL}
        return server.options(mine, self.files, seconds, raw=self.asked_raw or "true")

    def check_blocks(self, server: LocalServer[ClientT]) -> bool:
        """Whether `check_address` may block."""
        return not self.route.servers.settings.named and needs_look_up(server.backend.name)

    def check_address(self, server: LocalServer[ClientT], seconds: float | None) -> None:
        """Raise unless this server may be sent audio. May block for the connect timeout.

        A server that the user set for speech-to-text may be anywhere. `OPENAI_BASE_URL` may be a gateway on the
        internet, so it must be on the LAN.

        Raises:
            ConfigurationError: it is not on the LAN.
            ConnectError (of the HTTP library): its name was not found in time.

        """
        settings = self.route.servers.settings
        if settings.named:
            return
        url = server.backend.name
        allowed = settings.connect_timeout if seconds is None else min(settings.connect_timeout, seconds)
        on_lan = self.route.hosts.on_lan(url, allowed)
        if on_lan is None:
            raise http.ConnectError(f"the name {urlsplit(url).hostname} was not found in time")
        if not on_lan:
            raise ConfigurationError(
                f"OPENAI_BASE_URL is {url}, which is not on the LAN, so it is sent no audio. Set LOCALWHISPER_BASE_URL "
                f"to the local server, such as {DEFAULT_LOCAL_BASE_URL}; or to {url}, if that should transcribe."
            )

    def cloud_attempt(self, step: Try) -> CloudAttempt:
        """Return an attempt in the cloud: the caller's own request, within the remaining time.

        The SDK must not retry it, since each attempt first reserves its cost in the budget.
        """
        options = copy.copy(self.options)
        options.files = self.files
        options.max_retries = 0
        if self.cloud_url.rstrip("/") != str(self.client.base_url).rstrip("/"):
            options.url = f"{self.cloud_url.rstrip('/')}{endpoints.endpoint(self.client, options)}"
        if step.seconds is not None:
            options.timeout = _capped(self.timeout, step.seconds)
        route = self.route
        return CloudAttempt(
            options,
            step.backend.name,
            route.ledger,
            route.announce,
            failed,
            route.wall(),
            self.call.reason,
            adapts=not self.azure,
        )

    def answered(self, raw: Any) -> Outcome:
        """Return the outcome of a local server's checked response, in the form that the caller asked for."""
        self.route.hosts.warn_if_outside(raw.http_response)
        value = raw if self.asked_raw else raw.parse()
        return Outcome(
            Verdict.ANSWERED,
            value=value,
            queue_seconds=queue_seconds(raw.http_response.headers),
            audio_seconds=None if self.expected.stream else usage_of(value).seconds,
        )

    @staticmethod
    def local_fault(error: Exception) -> Outcome:
        """Return the outcome of a local attempt that raised; raise the error again if it is the caller's own."""
        outcome = failed(error, time.time())
        if outcome is None:
            raise error
        return outcome

    @property
    def records(self) -> bool:
        """Whether `record` has something to write."""
        local = not self.ending.cloud and self.ending.outcome.verdict is Verdict.ANSWERED
        return self.route.ledger.enabled and local

    def record(self) -> None:
        """Write the call into the ledger. Blocks. A call that the cloud answered is there already."""
        fields = endpoints.fields(self.options)
        self.route.ledger.record(lan_row(self.ending, fields, self.files, self.route.wall()))

    def result(self) -> Any:
        """Return the answer, or raise the error that explains why there is none; sets `last_call()`."""
        ending, outcome = self.ending, self.ending.outcome
        remember(
            LastCall(
                ending.backend,
                ending.cloud,
                ending.reason,
                ending.seconds,
                ending.cost_usd,
                outcome.audio_seconds,
                ending.attempts,
            )
        )
        if outcome.verdict is Verdict.ANSWERED:
            return outcome.value
        raise explained(ending, http.Request("POST", self.cloud_url), wants_cloud=self.route.wants_cloud)


def _capped(timeout: Any, seconds: float) -> openai.Timeout:
    parts = (
        timeout.as_dict()
        if hasattr(timeout, "as_dict")
        else dict.fromkeys(("connect", "read", "write", "pool"), timeout)
    )
    return openai.Timeout(
        **{name: round(min(value, seconds), 3) if value is not None else seconds for name, value in parts.items()}
    )
