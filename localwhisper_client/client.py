"""`LocalWhisper` and `AsyncLocalWhisper`: the SDK's clients, whose speech-to-text tries the LAN server first.

Both override `request`, through which every method of the SDK passes, and carry out there what `routing` decides.
Copying and closing are overridden only so that the routing goes along.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread
import openai

from localwhisper_client import _background, realtime
from localwhisper_client.calls import CallOptions, Route
from localwhisper_client.endpoints import endpoint, starts_realtime
from localwhisper_client.errors import MissingCloudKey
from localwhisper_client.lan import response
from localwhisper_client.lan.transport import within, within_async
from localwhisper_client.last_call import traced
from localwhisper_client.routing.steps import Try, Wait
from localwhisper_client.upload import Upload, needs_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from localwhisper_client.calls import Routed
    from localwhisper_client.events import Event
    from localwhisper_client.routing.policy import Policy
    from localwhisper_client.routing.steps import Outcome, Reply


class _Narrowed:
    """What copies a client together with its routing, and keeps realtime sessions to it."""

    _route: Any
    own_cloud = False
    """Whether the client knows its cloud by itself: it is the program's own, or Azure's."""

    @cached_property
    def realtime(self) -> Any:
        """The SDK's; a session is opened only where the policy lets audio go."""
        return realtime.asking(super().realtime, self._allow_realtime)  # type: ignore[misc] # the SDK's, which is next

    @cached_property
    def live(self) -> Any:
        """The same."""
        return realtime.asking(super().live, self._allow_realtime)  # type: ignore[misc] # as above

    @cached_property
    def beta(self) -> Any:
        """The SDK's, with the same for `beta.realtime`."""
        beta = super().beta  # type: ignore[misc] # as above
        if hasattr(beta, "realtime"):
            realtime.asking(beta.realtime, self._allow_realtime)
        return beta

    def _allow_realtime(self) -> None:
        realtime.allow_of(self, self._route)

    def copy(
        self,
        *,
        local_base_url: str | None = None,
        local_api_key: str | None = None,
        policy: Policy | str | None = None,
        connect_timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        _extra_kwargs: Mapping[str, Any] | None = None,
        **sdk: Any,
    ) -> Self:
        """Return a client with some options changed; it shares lan and breakers, and its policy is never looser."""
        wishes = CallOptions(local_base_url, local_api_key, policy, connect_timeout, on_event)
        route = self._route.narrowed(wishes)
        copy: Self = super().copy(  # type: ignore[misc] # the SDK's, which comes next
            _extra_kwargs={**(_extra_kwargs or {}), "_route": route}, **sdk
        )
        return copy

    with_options = copy

    def with_policy(self, policy: Policy | str) -> Self:
        """Return a client under this policy; where that is stricter, the one of the original stays in force."""
        return self.copy(policy=policy)


class LocalWhisper(_Narrowed, openai.OpenAI):
    """`openai.OpenAI`, whose `audio.transcriptions` and `audio.translations` are answered on the LAN first.

    Every argument of `openai.OpenAI` keeps its meaning: they describe the cloud, and everything that is not
    speech-to-text. No `api_key` is needed unless `policy` is `cloud`.

    Args:
        local_base_url: base URL of the server on the LAN, `http://pc:5000/v1`; several separated by commas.
            Default: `LOCALWHISPER_BASE_URL`, else `OPENAI_BASE_URL` where it points away from OpenAI, else
            `http://localhost:5000/v1`. What `OPENAI_BASE_URL` names must be on the LAN, or calls are refused.
        local_api_key: the key that server wants. Default: `LOCALWHISPER_API_KEY`.
        policy: `local_only` (the default), `wait` or `cloud`; the stricter of this and `LOCALWHISPER_POLICY` wins.
        connect_timeout: seconds the server has to accept a connection; default 1.
        on_event: called with each `localwhisper_client.Event`, in the thread or task where it happens.
        sdk: the arguments of `openai.OpenAI`.

    Raises:
        ConfigurationError: a setting cannot be used.

    """

    def __init__(
        self,
        *,
        local_base_url: str | None = None,
        local_api_key: str | None = None,
        policy: Policy | str | None = None,
        connect_timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        _route: Route[openai.OpenAI] | None = None,
        **sdk: Any,
    ) -> None:
        wishes = CallOptions(local_base_url, local_api_key, policy, connect_timeout, on_event)
        self._route: Route[openai.OpenAI] = _route or Route.load(openai.OpenAI, os.environ, wishes)
        super().__init__(**(sdk if self.own_cloud else self._route.cloud_arguments(sdk, os.environ, _no_key)))

    def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        """Send one request: speech-to-text where the routing says, everything else where it always went."""
        if endpoint(self, options) is None:
            if starts_realtime(options):
                self._allow_realtime()
            return super().request(cast_to, options, stream=stream, stream_cls=stream_cls)
        with Upload(options.files) as upload, traced(options.url):
            routed = self._route.call(self, options, upload.files, stream=stream)
            ask = partial(self._ask, routed, cast_to, stream=stream, stream_cls=stream_cls)
            with closing(routed.start().plan()) as plan:
                reply: Reply = None
                while True:
                    try:
                        step = plan.send(reply)
                    except StopIteration as end:
                        routed.book(end.value)
                        return routed.result(end.value)
                    match step:
                        case Wait():
                            time.sleep(step.seconds)
                            reply = None
                        case Try():
                            reply = ask(step)
                        case _:
                            work = routed.begin(step)
                            _background.wait(work, step.seconds)
                            reply = routed.result_of(step, work)

    def _ask(self, routed: Routed[openai.OpenAI], cast_to: Any, step: Try, **streaming: Any) -> Outcome:
        if step.backend.cloud:
            attempt = routed.attempt(step)
            try:
                attempt.prepare()
                value = super().request(cast_to, attempt.options, **streaming)
                return attempt.answered(value)
            except Exception as error:  # noqa: BLE001 - in the ledger first; raised at the end of the call
                return attempt.failed(error)
        server = self._route.lan.server(step.backend)
        try:
            with within(step.seconds):
                routed.vouch(server, step.seconds)
                raw: Any = server.client.request(cast_to, routed.lan_options(server, step.seconds), **streaming)
                response.read(raw.http_response, routed.expected)
            return routed.answer(raw)
        except Exception as error:  # noqa: BLE001 - raised again unless it is the network's or the server's
            return routed.lan_fault(error)

    def close(self) -> None:
        """Close the connections to the cloud and to the LAN server; as with the SDK, those of its copies too."""
        super().close()
        for server in self._route.lan.servers:
            server.client.close()
        self._route.ledger.close()


class AsyncLocalWhisper(_Narrowed, openai.AsyncOpenAI):
    """`openai.AsyncOpenAI`, with `LocalWhisper`'s arguments and routing."""

    def __init__(
        self,
        *,
        local_base_url: str | None = None,
        local_api_key: str | None = None,
        policy: Policy | str | None = None,
        connect_timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        _route: Route[openai.AsyncOpenAI] | None = None,
        **sdk: Any,
    ) -> None:
        wishes = CallOptions(local_base_url, local_api_key, policy, connect_timeout, on_event)
        self._route: Route[openai.AsyncOpenAI] = _route or Route.load(openai.AsyncOpenAI, os.environ, wishes)
        super().__init__(**(sdk if self.own_cloud else self._route.cloud_arguments(sdk, os.environ, _no_async_key)))

    async def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        """Send one request: speech-to-text where the routing says, everything else where it always went."""
        if endpoint(self, options) is None:
            if starts_realtime(options):
                self._allow_realtime()
            return await super().request(cast_to, options, stream=stream, stream_cls=stream_cls)
        # Only a file that must be copied can block.
        make = partial(Upload, options.files)
        copied = needs_copy(options.files)
        with await anyio.to_thread.run_sync(make) if copied else make() as upload, traced(options.url):
            routed = self._route.call(self, options, upload.files, stream=stream)
            ask = partial(self._ask, routed, cast_to, stream=stream, stream_cls=stream_cls)
            with closing(routed.start().plan()) as plan:
                reply: Reply = None
                while True:
                    try:
                        step = plan.send(reply)
                    except StopIteration as end:
                        if routed.books_kept:
                            await anyio.to_thread.run_sync(routed.book, end.value)
                        return routed.result(end.value)
                    match step:
                        case Wait():
                            await anyio.sleep(step.seconds)
                            reply = None
                        case Try():
                            reply = await ask(step)
                        case _:
                            work = routed.begin(step)
                            await _background.wait_async(work, step.seconds)
                            reply = routed.result_of(step, work)

    async def _ask(self, routed: Routed[openai.AsyncOpenAI], cast_to: Any, step: Try, **streaming: Any) -> Outcome:
        if step.backend.cloud:
            attempt = routed.attempt(step)
            try:
                await anyio.to_thread.run_sync(attempt.prepare)
                value = await super().request(cast_to, attempt.options, **streaming)
                return await anyio.to_thread.run_sync(attempt.answered, value)
            except Exception as error:  # noqa: BLE001 - as above
                return await anyio.to_thread.run_sync(attempt.failed, error)
        server = self._route.lan.server(step.backend)
        try:
            with within_async(step.seconds):
                if routed.must_look_up(server):
                    await anyio.to_thread.run_sync(routed.vouch, server, step.seconds, abandon_on_cancel=True)
                else:
                    routed.vouch(server, step.seconds)
                raw: Any = await server.client.request(cast_to, routed.lan_options(server, step.seconds), **streaming)
                await response.aread(raw.http_response, routed.expected)
            return routed.answer(raw)
        except Exception as error:  # noqa: BLE001 - as above
            return routed.lan_fault(error)

    async def close(self) -> None:
        """Close the connections to the cloud and to the LAN server; as with the SDK, those of its copies too."""
        await super().close()
        for server in self._route.lan.servers:
            await server.client.close()
        self._route.ledger.close()


@cache
def routed_class(kind: Any) -> Any:
    """Return a client class of the SDK's with our routing: `AzureOpenAI` and its like, whose cloud is their own."""
    ours = AsyncLocalWhisper if issubclass(kind, openai.AsyncOpenAI) else LocalWhisper
    return type(kind.__name__, (ours, kind), {"own_cloud": True, "__doc__": kind.__doc__})


def _no_key() -> str:
    raise MissingCloudKey


async def _no_async_key() -> str:
    raise MissingCloudKey
