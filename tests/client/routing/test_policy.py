"""What may leave the LAN, and the error if it may not; sync and async, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import openai
import pytest

import localwhisper
from localwhisper_client import CloudNotAllowed, ConfigurationError, LocalServerUnavailable, Policy
from localwhisper_client.routing.policy import current, within
from tests.client.driving import SHAPES
from tests.client.fault_server import TEXT, error, refusing, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.driving import Driver
    from tests.client.fault_server import FaultServer


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Record and refuse every connection and look-up to another machine."""
    seen: set[str] = set()

    def guarded(real: Any, place: int) -> Any:
        def guard(*args: Any, **kwargs: Any) -> Any:
            address = args[place]
            host = address[0] if isinstance(address, tuple) else address
            if host not in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost", "::1", None):
                seen.add(host.decode() if isinstance(host, bytes) else str(host))
                raise OSError(f"{host} is outside of the LAN")
            return real(*args, **kwargs)

        return guard

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect, 1))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex, 1))
    monkeypatch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, 0))
    yield seen
    # The guard itself works: a connection to another machine is seen.
    with pytest.raises(OSError, match="outside"), socket.socket() as out:
        out.connect(("192.0.2.1", 9))
    assert "192.0.2.1" in seen


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("policy", ["local_only", "wait"])
def test_nothing_outside_is_dialled(
    shape: str, policy: str, drive: Driver, dialled: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a key for the real cloud, and a local server that answers, refuses, fails or is full: no look-up either."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    with serving() as server, refusing() as port:
        client = drive.client(local_base_url=f"{server.url},http://127.0.0.1:{port}/v1", policy=policy, timeout=0.2)
        assert drive.call(client, shape) == TEXT
        for behaviour in (error(500), error(503), lambda conn, _: conn.close()):
            server.behaviour = behaviour
            with pytest.raises(openai.APIError):
                drive.call(client, shape)
    assert not dialled


def test_the_guard_sees_a_fallback(drive: Driver, dialled: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `cloud` the real one is dialled, which is what the other tests would see."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    with refusing() as port:
        client = drive.client(local_base_url=f"http://127.0.0.1:{port}/v1", policy="cloud", max_retries=0)
        with pytest.raises(openai.APIConnectionError):
            drive.call(client)
    assert dialled == {"api.openai.com"}


@pytest.mark.parametrize("how", ["environment", "original", "block"])
@pytest.mark.parametrize("strict", ["local_only", "wait"])
def test_the_error_says_which_stricter_policy_forbade_the_cloud(
    how: str, strict: str, drive: Driver, cloud: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the environment, the client that was copied, or the block around the call; as an error that handlers know."""
    with refusing() as port:
        options: dict[str, Any] = {"local_base_url": f"http://127.0.0.1:{port}/v1", "timeout": 0.3}
        if how == "environment":
            monkeypatch.setenv("LOCALWHISPER_POLICY", strict)
            client = drive.client(policy="cloud", **options)
        elif how == "original":
            client = drive.client(policy=strict, **options).with_policy("cloud")
        else:
            client = drive.client(policy="cloud", **options)
        with pytest.raises(CloudNotAllowed, match=f"stricter policy \\({strict}\\)") as raised:
            drive.call(client, within=Policy(strict) if how == "block" else None)
        assert isinstance(raised.value, (LocalServerUnavailable, openai.APIConnectionError))
        assert not cloud.calls
        if how == "block":
            patient = client.with_options(timeout=15)
            assert drive.call(patient) == TEXT
            assert drive.call(patient, within=Policy.CLOUD) == TEXT


def test_a_bad_request_is_raised_as_it_is(drive: Driver, cloud: FaultServer) -> None:
    """A bad request would not have gone to the cloud under any policy, so it is raised as it is."""
    with serving(error(400)) as server:
        client = drive.client(local_base_url=server.url, policy="local_only").with_policy("cloud")
        with pytest.raises(openai.BadRequestError):
            drive.call(client)
    assert not cloud.calls


def test_under_every_policy_a_local_server_that_answers_gets_the_call(drive: Driver, local_server: FaultServer) -> None:
    """Of the client, the copy and the block."""
    client = drive.client(local_base_url=local_server.url)
    for policy in Policy:
        copy = client.with_policy(policy)
        assert type(copy) is type(client)
        assert drive.call(copy, within=policy) == TEXT


def test_blocks_nest_and_the_strictest_wins() -> None:
    """And end with themselves, by an exception too; by the module's name for it, in words."""
    assert current() is None
    with localwhisper.policy("wait"):
        assert current() is Policy.WAIT
        with localwhisper.policy("cloud"):
            assert current() is Policy.WAIT
        with localwhisper.policy(Policy.LOCAL_ONLY):
            assert current() is Policy.LOCAL_ONLY
        with contextlib.suppress(ZeroDivisionError), localwhisper.policy(Policy.LOCAL_ONLY):
            _ = 1 / 0
        assert current() is Policy.WAIT
    assert current() is None
    with pytest.raises(ConfigurationError, match="policy"):
        localwhisper.policy("perhaps")


def test_a_block_holds_for_its_task_alone() -> None:
    """And for tasks that were started in it."""

    async def main() -> list[Policy | None]:
        inside = asyncio.Event()

        async def strict() -> Policy | None:
            with within(Policy.LOCAL_ONLY):
                inside.set()
                return await asyncio.create_task(ask())

        async def ask() -> Policy | None:
            await inside.wait()
            return current()

        return list(await asyncio.gather(strict(), ask()))

    assert asyncio.run(main()) == [Policy.LOCAL_ONLY, None]


def test_the_module_client_obeys(cloud: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`import localwhisper as openai`, with a block around the one call that is private."""
    monkeypatch.setattr(localwhisper, "_current", None)
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    with refusing() as port:
        monkeypatch.setenv("LOCALWHISPER_BASE_URL", f"http://127.0.0.1:{port}/v1")
        assert localwhisper.audio.transcriptions.create(model="whisper-1", file=b"x").text == TEXT
        with localwhisper.policy("local_only"), pytest.raises(LocalServerUnavailable):
            localwhisper.audio.transcriptions.create(model="whisper-1", file=b"x")
    assert len(cloud.calls) == 1
    localwhisper._client().close()
