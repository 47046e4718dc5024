"""What the sync and the async client share: their arguments, a request's way into the routing, and its way out."""

from __future__ import annotations

import copy
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic
from urllib.parse import urlsplit

import openai

from localwhisper_client import _background, endpoints
from localwhisper_client._http import http
from localwhisper_client.cloud.attempt import CloudAttempt, lan_row, usage_of
from localwhisper_client.cloud.ledger import Ledger
from localwhisper_client.cloud.models import MODELS
from localwhisper_client.errors import ConfigurationError, explained
from localwhisper_client.events import Announcer
from localwhisper_client.lan.classification import Expected, failed, queue_seconds
from localwhisper_client.lan.servers import ClientT, LocalServers, Server, without_credentials
from localwhisper_client.lan.trust import Trust
from localwhisper_client.last_call import LastCall, remember
from localwhisper_client.routing.plan import Call
from localwhisper_client.routing.policy import Policy, current, strictest
from localwhisper_client.routing.steps import Backend, Ending, Find, Outcome, Probe, Try, Verdict
from localwhisper_client.settings import DEFAULT_LOCAL_BASE_URL, Settings, parse_policy
from localwhisper_client.shared.lan_ranges import settled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from localwhisper_client.events import Event
    from localwhisper_client.lan.hooks import Resolver, Waker
    from localwhisper_client.routing.steps import Reply, Wake

# What servers of OpenAI's API call whatever they serve.
_ANY_MODEL = "whisper-1"
_RAW = "x-stainless-raw-response"
# With one of these the SDK finds its own way to the cloud, and refuses to be told another.
_OWN_ROUTE = ("provider", "data_residency", "workload_identity")
_OWN_KEY = ("api_key", "provider", "workload_identity")


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What a constructor or a copy was told of routing; `None` where it was told nothing."""

    local_base_url: str | None = None
    local_api_key: str | None = None
    policy: Policy | str | None = None
    connect_timeout: float | None = None
    on_event: Callable[[Event], None] | None = None


@dataclass(frozen=True)
class Route(Generic[ClientT]):
    """How one client routes; immutable, and shared with its copies as far as they ask for nothing else."""

    lan: LocalServers[ClientT]
    policy: Policy
    announce: Announcer
    ledger: Ledger
    trust: Trust = field(default_factory=Trust)
    wants_cloud: bool = False
    """Whether the program wished for the cloud, which a stricter wish may have overruled."""
    wall: Callable[[], float] = time.time
    """The time of day, in seconds since the epoch."""

    @classmethod
    def load(
        cls, kind: type[ClientT], environ: Mapping[str, str], wishes: CallOptions, **lan: Resolver | Waker | None
    ) -> Route[ClientT]:
        """Read the constructor's arguments and the environment; opens no connection and no file."""
        settings = Settings.load(
            environ,
            local_base_url=wishes.local_base_url,
            local_api_key=wishes.local_api_key,
            connect_timeout=wishes.connect_timeout,
        )
        wished = parse_policy("policy", wishes.policy)
        return cls(
            LocalServers(settings, kind, **lan),  # type: ignore[arg-type] # a resolver and a waker, by name
            strictest([settings.policy, wished]),
            Announcer(wishes.on_event),
            Ledger(settings.ledger, settings.budget),
            wants_cloud=wished is Policy.CLOUD,
        )

    def narrowed(self, wishes: CallOptions) -> Route[ClientT]:
        """Return the route of a copy: same lan and breakers unless told of another, never a looser policy."""
        settings = self.lan.settings
        moved = wishes.local_base_url or wishes.local_api_key or wishes.connect_timeout is not None
        if moved:
            new = Settings.load(
                {},
                local_base_url=wishes.local_base_url or ",".join(settings.local_base_urls),
                local_api_key=wishes.local_api_key or settings.local_api_key,
                connect_timeout=settings.connect_timeout if wishes.connect_timeout is None else wishes.connect_timeout,
            )
            settings = replace(
                settings,
                local_base_urls=new.local_base_urls,
                local_api_key=new.local_api_key,
                connect_timeout=new.connect_timeout,
                named=settings.named or bool(wishes.local_base_url),
            )
            settings.check("local_base_url")
        wished = parse_policy("policy", wishes.policy)
        return replace(
            self,
            lan=self.lan.moved(settings) if moved else self.lan,
            policy=strictest([self.policy, wished]),
            announce=self.announce if wishes.on_event is None else Announcer(wishes.on_event),
            wants_cloud=self.wants_cloud if wished is None else wished is Policy.CLOUD,
        )

    def cloud_arguments(self, sdk: dict[str, Any], environ: Mapping[str, str], no_key: object) -> dict[str, Any]:
        """Return the SDK's own constructor arguments, with what must not be left to it.

        That is the base URL, which the SDK would take from `OPENAI_BASE_URL` even where that is the LAN server's; and,
        where calls stay on the LAN and no key was given, `no_key`: what the SDK calls for one when the cloud is used
        after all.
        """
        arguments = dict(sdk)
        if not _any_given(sdk, "base_url", *_OWN_ROUTE):
            arguments["base_url"] = self.lan.settings.gateway or self.lan.settings.cloud_url
        if not self.policy.leaves_lan and not _any_given(sdk, *_OWN_KEY) and not environ.get("OPENAI_API_KEY"):
            arguments["api_key"] = no_key
        return arguments

    def call(self, client: Any, options: Any, files: Any, *, stream: bool) -> Routed[ClientT]:
        """Return a call that is ready to go."""
        timeout = client.timeout if isinstance(options.timeout, openai.NotGiven) else options.timeout
        sent = endpoints.as_sent(options)
        settings = self.lan.settings
        cloud_url = str(client.base_url)
        # Speech goes to the cloud that is named for it, whatever gateway the rest goes to.
        if settings.gateway and not client.own_cloud and cloud_url.rstrip("/") == settings.gateway.rstrip("/"):
            cloud_url = settings.cloud_url
        return Routed(
            self,
            client,
            sent,
            files,
            Expected.of(sent.json_data, stream=stream),
            timeout,
            cloud_url,
            options.get_max_retries(client.max_retries),
        )


@dataclass
class Routed(Generic[ClientT]):
    """One call: what to send to whom, and how to read what came back."""

    route: Route[ClientT]
    client: Any
    options: Any
    """The request as it is sent, `extra_body` among its fields."""
    files: Any
    expected: Expected
    timeout: Any
    cloud_url: str
    cloud_retries: int
    asked_raw: str | None = field(init=False)
    """How the caller wants the response: `"true"`, `"stream"`, or parsed."""
    call: Call = field(init=False)
    """Its way through the backends, once it has started."""

    def __post_init__(self) -> None:
        headers = self.options.headers if isinstance(self.options.headers, dict) else {}
        raw = next((value for name, value in headers.items() if name.lower() == _RAW), None)
        self.asked_raw = raw if isinstance(raw, str) else None
        self.azure = isinstance(self.client, (openai.AzureOpenAI, openai.AsyncAzureOpenAI))

    def start(self) -> Call:
        """Return the routing of this call, its clock started."""
        seconds = self.timeout.read if hasattr(self.timeout, "read") else self.timeout
        cloud = Backend(without_credentials(self.cloud_url).rstrip("/"), cloud=True)
        route = self.route
        self.call = Call(
            route.lan.backends,
            cloud,
            strictest([route.policy, current()]),
            seconds,
            time.monotonic,
            random.random,
            route.announce,
            route.lan.finds,
            route.lan.wakes,
            self.cloud_retries,
        )
        return self.call

    def begin(self, step: Probe | Find | Wake) -> Future[Any]:
        """Begin a step that may block but sends no audio."""
        lan = self.route.lan
        if isinstance(step, Probe):
            return lan.server(step.backend).prober.ask(self.route.announce)
        return _background.start(lan.find, step.lost) if isinstance(step, Find) else _background.start(lan.wake)

    def result_of(self, step: Probe | Find | Wake, work: Future[Any]) -> Reply:
        """Return what came of it or, where that is not known in time, what is known anyway."""
        if work.done():
            result: Reply = work.result()
            return result
        return self.route.lan.backends if isinstance(step, Find) else False

    def lan_options(self, server: Server[ClientT], seconds: float | None) -> Any:
        """Return the request as it goes to a LAN server: to its own address, however the caller spelled the path."""
        mine = copy.copy(self.options)
        mine.url = endpoints.endpoint(self.client, self.options)
        if self.azure and endpoints.fields(mine).get("model") not in MODELS:
            # Azure's names are those of the user's own deployments, which no other server knows.
            mine.json_data = {**endpoints.fields(mine), "model": _ANY_MODEL}
        return server.options(mine, self.files, seconds, raw=self.asked_raw or "true")

    def must_look_up(self, server: Server[ClientT]) -> bool:
        """Whether `vouch` may block."""
        return not self.route.lan.settings.named and settled(urlsplit(server.backend.name).hostname or "") is None

    def vouch(self, server: Server[ClientT], seconds: float | None) -> None:
        """Raise unless a LAN server may be sent audio; may block for as long as a connection may take.

        What the user named for speech may be anywhere. What `OPENAI_BASE_URL` says may be a gateway's address.

        Raises:
            ConfigurationError: it is not on the LAN.
            ConnectError (of the HTTP library): its name was not found in time.

        """
        settings = self.route.lan.settings
        if settings.named:
            return
        url = server.backend.name
        host = urlsplit(url).hostname or ""
        allowed = settings.connect_timeout if seconds is None else min(settings.connect_timeout, seconds)
        here = self.route.trust.on_lan(host, allowed)
        if here is None:
            raise http.ConnectError(f"the name {host} was not found in time")
        if not here:
            raise ConfigurationError(
                f"OPENAI_BASE_URL is {url}, which is not on the LAN, so it is sent no audio. Set LOCALWHISPER_BASE_URL "
                f"to the LAN server, such as {DEFAULT_LOCAL_BASE_URL}; or to {url}, if that is meant to transcribe."
            )

    def attempt(self, step: Try) -> CloudAttempt:
        """Return an attempt in the cloud: the caller's own request, within the time that is left.

        The SDK does not repeat it by itself: each attempt must have its place in the budget first.
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

    def answer(self, raw: Any) -> Outcome:
        """Return the outcome of a response that was read and found right, in the form the caller asked for."""
        self.route.trust.note(raw.http_response)
        value = raw if self.asked_raw else raw.parse()
        return Outcome(
            Verdict.ANSWERED,
            value=value,
            queue_seconds=queue_seconds(raw.http_response.headers),
            audio_seconds=None if self.expected.stream else usage_of(value).seconds,
        )

    @staticmethod
    def lan_fault(error: Exception) -> Outcome:
        """Return what an exception of an attempt on the LAN means; raise it if it is the caller's own."""
        outcome = failed(error, time.time())
        if outcome is None:
            raise error
        return outcome

    @property
    def books_kept(self) -> bool:
        """Whether `book` has something to write."""
        return self.route.ledger.enabled

    def book(self, ending: Ending) -> None:
        """Write a call that the LAN server answered into the ledger. Blocks."""
        if ending.cloud or ending.outcome.verdict is not Verdict.ANSWERED:
            return
        self.route.ledger.record(lan_row(ending, endpoints.fields(self.options), self.files, self.route.wall()))

    def result(self, ending: Ending) -> Any:
        """Return the answer, or raise what explains why there is none; either becomes the task's last call."""
        outcome = ending.outcome
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
        unsent = http.Request("POST", self.cloud_url)
        raise explained(ending, unsent, wants_cloud=self.route.wants_cloud)


def _any_given(arguments: dict[str, Any], *names: str) -> bool:
    # The SDK's "not given" is falsy, and to it an empty key or address is as good as none.
    return any(arguments.get(name) for name in names)


def _capped(timeout: Any, seconds: float) -> openai.Timeout:
    parts = (
        timeout.as_dict()
        if hasattr(timeout, "as_dict")
        else dict.fromkeys(("connect", "read", "write", "pool"), timeout)
    )
    return openai.Timeout(
        **{name: round(min(value, seconds), 3) if value is not None else seconds for name, value in parts.items()}
    )
