"""`LocalWhisper` and `AsyncLocalWhisper`: the SDK's clients, whose speech-to-text tries the local server first.

Both override `request`, through which every method of the SDK passes, and carry out there what `routing` decides.
The constructor, `copy` and `close` are overridden so that the routing is made, copied and closed with the client.
"""

from __future__ import annotations

import functools
import os
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self, Unpack

import anyio
import anyio.to_thread
import openai

from localwhisper_client import _background, realtime
from localwhisper_client.call import Pending, Route, RoutedCall
from localwhisper_client.errors import MissingCloudKey
from localwhisper_client.lan.answers import aread, read
from localwhisper_client.lan.transport import within, within_async
from localwhisper_client.request import Upload, endpoint, needs_copy, starts_realtime
from localwhisper_client.routing.plan import Try, Wait
from localwhisper_client.settings import split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localwhisper_client.routing.plan import Outcome
    from localwhisper_client.routing.policy import Policy
    from localwhisper_client.settings import ClientOptions, CopyOptions


def _no_key() -> str:
    raise MissingCloudKey


async def _no_async_key() -> str:
    raise MissingCloudKey


class _Routing:
    """What both clients share: the constructor, copies, and the choice of where realtime sessions go."""

    _kind: Any
    _no_key: Any
    own_cloud = False
    """Whether the client sets up its cloud itself: the program's own client under `install`, or Azure's."""

    def __init__(self, *, _route: Route[Any] | None = None, **options: Unpack[ClientOptions]) -> None:
        ours, sdk = split(options)
        self._route: Route[Any] = _route or Route.load(self._kind, os.environ, ours)
        super().__init__(**(sdk if self.own_cloud else self._route.cloud_arguments(sdk, os.environ, self._no_key)))

    def copy(self, *, _extra_kwargs: Mapping[str, Any] | None = None, **options: Unpack[CopyOptions]) -> Self:
        """Return a client with some arguments changed.

        It shares the local servers and their breakers, and its policy is never looser than the original's.
        """
        ours, sdk = split(options)
        extra = {**(_extra_kwargs or {}), "_route": self._route.changed(ours)}
        copy: Self = super().copy(_extra_kwargs=extra, **sdk)  # type: ignore[misc] # the SDK's method, next in order
        return copy

    with_options = copy

    def with_policy(self, policy: Policy | str) -> Self:
        """Return a client with this policy, or with the original's if that is stricter."""
        return self.copy(policy=policy)

    @functools.cached_property
    def realtime(self) -> Any:
        """The SDK's; a transcription goes to a local server, and the policy must allow any other session."""
        return self._routed(super().realtime)  # type: ignore[misc] # as above

    @functools.cached_property
    def live(self) -> Any:
        """The SDK's; a session is opened only if the policy allows it."""
        return self._checked(super().live)  # type: ignore[misc] # as above

    @functools.cached_property
    def beta(self) -> Any:
        """The SDK's; sessions of `beta.realtime` go where those of `realtime` go."""
        beta = super().beta  # type: ignore[misc] # as above
        if hasattr(beta, "realtime"):
            self._routed(beta.realtime)
        return beta

    def _allow_realtime(self) -> None:
        client: Any = self
        self._route.allow_realtime(str(client.websocket_base_url or client.base_url))

    def _checked(self, resource: Any) -> Any:
        """Make each `connect` of one of the SDK's resources, and of those in it, ask the policy first."""
        below = (name for name, value in vars(type(resource)).items() if isinstance(value, functools.cached_property))
        for each in (resource, *(getattr(resource, name) for name in below)):
            if (connect := getattr(each, "connect", None)) is not None:
                each.connect = self._after_check(connect)
        return resource

    def _after_check(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(connect)
        def checked(*args: Any, **options: Any) -> Any:
            self._allow_realtime()
            return connect(*args, **options)

        return checked

    def _routed(self, resource: Any) -> Any:
        """Make `connect` of one of the SDK's resources send transcriptions to a local server, and check the rest."""
        checked = self._checked(resource).connect

        @functools.wraps(checked)
        def connect(**options: Any) -> Any:
            if realtime.transcribes(options.get("extra_query") or {}, options.get("model")):
                return realtime.manager(resource, self, lambda: self._route, options)
            return checked(**options)

        resource.connect = connect
        return resource


class LocalWhisper(_Routing, openai.OpenAI):  # type: ignore[misc] # its `copy` takes more
    """`openai.OpenAI`, whose `audio.transcriptions` and `audio.translations` are answered on the LAN first.

    Every argument of `openai.OpenAI` keeps its meaning: it describes the cloud, and every call that is not
    speech-to-text. No `api_key` is needed unless `policy` is `cloud`.

    Args:
        local_base_url: base URL of the local server, `http://pc:5000/v1`; several separated by commas. Default:
            `LOCALWHISPER_BASE_URL`, else `OPENAI_BASE_URL` if it does not point to OpenAI, else
            `http://localhost:5000/v1`. A URL from `OPENAI_BASE_URL` must be on the LAN, or calls are refused.
        local_api_key: the local server's key. Default: `LOCALWHISPER_API_KEY`.
        policy: `local_only` (the default), `wait` or `cloud`; the stricter of this and `LOCALWHISPER_POLICY` wins.
        connect_timeout: seconds that the local server has to accept a connection; default 1.
        on_event: called with each `localwhisper_client.Event`, in the thread or task where it happens.
        options: also the arguments of `openai.OpenAI`.

    Raises:
        ConfigurationError: a setting cannot be used.

    """

    _kind = openai.OpenAI
    _no_key = staticmethod(_no_key)

    def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        """Send one request: speech-to-text by the routing, every other one as the SDK does."""
        if endpoint(self, options) is None:
            if starts_realtime(options):
                self._allow_realtime()
            return super().request(cast_to, options, stream=stream, stream_cls=stream_cls)
        with Upload(options.files) as upload:
            call = RoutedCall(self._route, self, options, upload.files, stream=stream)
            with closing(call.steps()) as steps:
                for step in steps:
                    match step:
                        case Wait():
                            time.sleep(step.seconds)
                        case Pending():
                            _background.wait(step.work, step.seconds)
                        case Try():
                            call.outcome = self._try(call, step, cast_to, stream=stream, stream_cls=stream_cls)
            if call.records:
                call.record()
            return call.result()

    def _try(self, call: RoutedCall[openai.OpenAI], step: Try, cast_to: Any, **streaming: Any) -> Outcome:
        if step.backend.cloud:
            attempt = call.cloud_attempt(step)
            try:
                attempt.prepare()
                value = super().request(cast_to, attempt.options, **streaming)
                return attempt.answered(value)
            except Exception as error:  # noqa: BLE001 - recorded first; raised at the end of the call
                return attempt.failed(error)
        server = self._route.servers.server(step.backend)
        try:
            with within(step.seconds):
                raw: Any = server.client.request(cast_to, call.local_options(server, step.seconds), **streaming)
                read(raw.http_response, call.expected)
            return call.answered(raw)
        except Exception as error:  # noqa: BLE001 - raised again unless it is the network's or the server's
            return call.local_fault(error)

    def close(self) -> None:
        """Close the connections to the cloud and to the local servers; as with the SDK, those of its copies too."""
        super().close()
        for server in self._route.servers.all:
            server.client.close()
        self._route.ledger.close()


class AsyncLocalWhisper(_Routing, openai.AsyncOpenAI):  # type: ignore[misc] # as above
    """`openai.AsyncOpenAI`, with `LocalWhisper`'s arguments and routing."""

    _kind = openai.AsyncOpenAI
    _no_key = staticmethod(_no_async_key)

    async def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        """Send one request: speech-to-text by the routing, every other one as the SDK does."""
        if endpoint(self, options) is None:
            if starts_realtime(options):
                self._allow_realtime()
            return await super().request(cast_to, options, stream=stream, stream_cls=stream_cls)
        # Only copying a file blocks.
        copied = needs_copy(options.files)
        upload = await anyio.to_thread.run_sync(Upload, options.files) if copied else Upload(options.files)
        with upload:
            call = RoutedCall(self._route, self, options, upload.files, stream=stream)
            with closing(call.steps()) as steps:
                for step in steps:
                    match step:
                        case Wait():
                            await anyio.sleep(step.seconds)
                        case Pending():
                            await _background.wait_async(step.work, step.seconds)
                        case Try():
                            call.outcome = await self._try(call, step, cast_to, stream=stream, stream_cls=stream_cls)
            if call.records:
                await anyio.to_thread.run_sync(call.record)
            return call.result()

    async def _try(self, call: RoutedCall[openai.AsyncOpenAI], step: Try, cast_to: Any, **streaming: Any) -> Outcome:
        if step.backend.cloud:
            attempt = call.cloud_attempt(step)
            try:
                await anyio.to_thread.run_sync(attempt.prepare)
                value = await super().request(cast_to, attempt.options, **streaming)
                return await anyio.to_thread.run_sync(attempt.answered, value)
            except Exception as error:  # noqa: BLE001 - as above
                return await anyio.to_thread.run_sync(attempt.failed, error)
        server = self._route.servers.server(step.backend)
        try:
            with within_async(step.seconds):
                raw: Any = await server.client.request(cast_to, call.local_options(server, step.seconds), **streaming)
                await aread(raw.http_response, call.expected)
            return call.answered(raw)
        except Exception as error:  # noqa: BLE001 - as above
            return call.local_fault(error)

    async def close(self) -> None:
        """Close the connections to the cloud and to the local servers; as with the SDK, those of its copies too."""
        await super().close()
        for server in self._route.servers.all:
            await server.client.close()
        self._route.ledger.close()


@functools.cache
def routed_class(kind: Any) -> Any:
    """Return a client class of the SDK's with our routing: `AzureOpenAI` and its like, which set up their own cloud."""
    ours = AsyncLocalWhisper if issubclass(kind, openai.AsyncOpenAI) else LocalWhisper
    return type(kind.__name__, (ours, kind), {"own_cloud": True, "__doc__": kind.__doc__})
