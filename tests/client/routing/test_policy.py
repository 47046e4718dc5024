"""What may leave the LAN, and the error if it may not; sync and async, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import openai
import pytest

import localwhisper
from localwhisper_client import CloudNotAllowed, ConfigurationError, LocalServerUnavailable, Policy
from localwhisper_client.routing.policy import current, within
from tests.client.fault_server import TEXT, error, refusing, serving
from tests.client.leaving import no_socket_leaves

if TYPE_CHECKING:
    from tests.client.driving import Driver
    from tests.client.fault_server import FaultServer


@pytest.mark.parametrize("shape", ["plain", "events"])
@pytest.mark.parametrize("policy", ["local_only", "wait"])
def test_nothing_outside_is_dialled(shape: str, policy: str, drive: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key for the real cloud, and a local server that answers, refuses, fails or is full: no look-up either."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    with no_socket_leaves(), serving() as server, refusing() as port:
        client = drive.client(local_base_url=f"{server.url},http://127.0.0.1:{port}/v1", policy=policy)
        assert drive.call(client, shape) == TEXT
        client = client.with_options(timeout=0.2)
        for behaviour in (error(500), error(503), lambda conn, _: conn.close()):
            server.behaviour = behaviour
            with pytest.raises(openai.APIError):
                drive.call(client, shape)


def test_the_guard_sees_a_fallback(drive: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `cloud` the real one is dialled, which is what the other tests would see."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")

    def call() -> None:
        with no_socket_leaves(), refusing() as port, contextlib.suppress(openai.APIConnectionError):
            drive.call(drive.client(local_base_url=f"http://127.0.0.1:{port}/v1", policy="cloud", max_retries=0))

    with pytest.raises(AssertionError, match=r"api\.openai\.com"):
        call()


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


@pytest.mark.usefixtures("module_client")
def test_the_module_client_obeys(cloud: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`import localwhisper as openai`, with a block around the one call that is private."""
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    with refusing() as port:
        monkeypatch.setenv("LOCALWHISPER_BASE_URL", f"http://127.0.0.1:{port}/v1")
        assert localwhisper.audio.transcriptions.create(model="whisper-1", file=b"x").text == TEXT
        with localwhisper.policy("local_only"), pytest.raises(LocalServerUnavailable):
            localwhisper.audio.transcriptions.create(model="whisper-1", file=b"x")
    assert len(cloud.calls) == 1
