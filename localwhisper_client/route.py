"""What the sync and the async client share: their arguments, a request's way into the routing, and its way out."""

from __future__ import annotations

import copy
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic

import openai

from localwhisper_client._http import http
from localwhisper_client.config import Settings, parse_policy
from localwhisper_client.errors import explained
from localwhisper_client.events import Announcer
from localwhisper_client.house import ClientT, House, Server, without_credentials
from localwhisper_client.outcome import Expected, failed
from localwhisper_client.policy import Policy, strictest
from localwhisper_client.routing import Backend, Call, Ending, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localwhisper_client.events import Event

_SPEECH_TO_TEXT = frozenset({"audio/transcriptions", "audio/translations"})
_RAW = "x-stainless-raw-response"
# With one of these the SDK finds its own way to the cloud, and refuses to be told another.
_OWN_ROUTE = ("provider", "data_residency", "workload_identity")
_OWN_KEY = ("api_key", "provider", "workload_identity")


@dataclass(frozen=True)
class Route(Generic[ClientT]):
    """How one client routes; immutable, and shared with its copies as far as they ask for nothing else."""

    house: House[ClientT]
    policy: Policy
    announce: Announcer

    @classmethod
    def load(
        cls,
        kind: type[ClientT],
        environ: Mapping[str, str],
        *,
        lan_url: str | None = None,
        lan_key: str | None = None,
        policy: Policy | str | None = None,
        connect_timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Route[ClientT]:
        """Read the constructor's arguments and the environment; opens no connection."""
        settings = Settings.load(environ, lan_url=lan_url, lan_key=lan_key, connect_timeout=connect_timeout)
        wished = strictest([settings.policy, parse_policy("policy", policy)])
        return cls(House(settings, kind), wished, Announcer(on_event))

    def narrowed(
        self, kind: type[ClientT], policy: Policy | str | None, on_event: Callable[[Event], None] | None, **house: Any
    ) -> Route[ClientT]:
        """Return the route of a copy: same house and breakers unless told of another, never a looser policy."""
        settings = self.house.settings
        changes = {name: value for name, value in house.items() if value is not None}
        if changes:
            url = changes.get("lan_url") or ",".join(settings.lan_urls)
            new = Settings.load(
                {},
                lan_url=url,
                lan_key=changes.get("lan_key") or settings.lan_key,
                connect_timeout=changes.get("connect_timeout", settings.connect_timeout),
            )
            settings = replace(new, policy=settings.policy, cloud_url=settings.cloud_url)
        return Route(
            House(settings, kind) if changes else self.house,
            strictest([self.policy, parse_policy("policy", policy)]),
            self.announce if on_event is None else Announcer(on_event),
        )

    def cloud_arguments(self, sdk: dict[str, Any], environ: Mapping[str, str], no_key: object) -> dict[str, Any]:
        """Return the SDK's own constructor arguments, which describe the cloud, with what must not be left to it.

        That is the base URL, which the SDK would take from `OPENAI_BASE_URL` and so from the house; and, where calls
        stay in the house and nobody gave a key, `no_key`: what the SDK calls for one when the cloud is used after all.
        """
        arguments = dict(sdk)
        if not _any_given(sdk, "base_url", *_OWN_ROUTE):
            arguments["base_url"] = self.house.settings.cloud_url
        if not self.policy.leaves_house and not _any_given(sdk, *_OWN_KEY) and not environ.get("OPENAI_API_KEY"):
            arguments["api_key"] = no_key
        return arguments

    def call(self, client: Any, options: Any, files: Any, *, stream: bool) -> Routed[ClientT]:
        """Return a call that is ready to go."""
        timeout = client.timeout if isinstance(options.timeout, openai.NotGiven) else options.timeout
        return Routed(
            self, options, files, Expected.of(options.json_data, stream=stream), timeout, str(client.base_url)
        )


def is_speech_to_text(options: Any) -> bool:
    """Whether a request is one that the house answers."""
    return options.method.lower() == "post" and options.url.strip("/") in _SPEECH_TO_TEXT


@dataclass(frozen=True)
class Routed(Generic[ClientT]):
    """One call: what to send to whom, and how to read what came back."""

    route: Route[ClientT]
    options: Any
    files: Any
    expected: Expected
    timeout: Any
    cloud_url: str
    asked_raw: str | None = field(init=False)
    """How the caller wants the response: `"true"`, `"stream"`, or parsed."""

    def __post_init__(self) -> None:
        headers = self.options.headers if isinstance(self.options.headers, dict) else {}
        raw = next((value for name, value in headers.items() if name.lower() == _RAW), None)
        object.__setattr__(self, "asked_raw", raw)

    def start(self) -> Call:
        """Return the routing of this call, its clock started."""
        seconds = self.timeout.read if hasattr(self.timeout, "read") else self.timeout
        cloud = Backend(without_credentials(self.cloud_url).rstrip("/"), cloud=True)
        route = self.route
        return Call(route.house.backends, cloud, route.policy, seconds, time.monotonic, random.random, route.announce)

    def house_options(self, server: Server[ClientT], seconds: float | None) -> Any:
        """Return the request as it goes to a server in the house."""
        return server.options(self.options, self.files, seconds, raw=self.asked_raw or "true")

    def cloud_options(self, seconds: float | None) -> Any:
        """Return the request as it goes to the cloud: the caller's own, within the time that is left."""
        options = copy.copy(self.options)
        options.files = self.files
        if seconds is not None:
            options.timeout = _capped(self.timeout, seconds)
        return options

    def answer(self, raw: Any) -> Outcome:
        """Return the outcome of a response that was read and found right, in the form the caller asked for."""
        return Outcome(Verdict.ANSWERED, value=raw if self.asked_raw else raw.parse())

    @staticmethod
    def house_fault(error: Exception) -> Outcome:
        """Return what an exception of an attempt in the house means; raise it if it is the caller's own."""
        outcome = failed(error, time.time())
        if outcome is None:
            raise error
        return outcome

    @staticmethod
    def cloud_fault(error: openai.OpenAIError) -> Outcome:
        """Return the outcome of an attempt in the cloud that failed; the SDK has tried again as often as it may."""
        status = getattr(error, "status_code", None)
        return Outcome(Verdict.FAILURE, f"status {status}" if status else str(error), error=error)

    def result(self, ending: Ending) -> Any:
        """Return the answer, or raise what explains why there is none."""
        if ending.outcome.verdict is Verdict.ANSWERED:
            return ending.outcome.value
        raise explained(ending, http.Request("POST", self.cloud_url))


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
