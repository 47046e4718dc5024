"""An engine replica with a real model, without Ray around it."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING

import pytest

from localwhisper_server.cluster.engine import EngineReplica, find_once
from localwhisper_server.cluster.messages import Call
from localwhisper_server.served_model import voice_message
from localwhisper_server.settings import Settings
from localwhisper_server.types import Decoding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localwhisper_server.whisper.chunks import Chunk

pytestmark = [pytest.mark.model, pytest.mark.anyio]


@pytest.fixture(scope="module")
def replica() -> Iterator[EngineReplica]:
    """Give a replica with one core."""
    replica = EngineReplica(Settings(model="tiny.en"), 1, lambda: "one")
    yield replica
    replica.__del__()


@pytest.fixture
def chunk(replica: EngineReplica) -> Chunk:
    """Give the demo's chunk, as a face makes it from what the replica says of its model."""
    return replica.describe().prepare(voice_message(), Decoding(language="en"))


async def test_a_call_is_answered(replica: EngineReplica, chunk: Chunk) -> None:
    """With the words, the replica's name, and how busy it is."""
    assert (replica.describe().languages, replica.describe().device) == (frozenset({"en"}), "cpu")
    answer = await replica.decode(Call("1", "a", chunk))
    assert answer.result is not None
    assert "bread on the way home" in answer.result.segments[0].text
    assert (answer.state.replica, answer.state.loaded) == ("one", True)
    assert answer.state.speed > 0
    await replica.check_health()
    name, text = replica.families()
    assert name == "one"
    assert b'localwhisper_chunks_total{model="tiny.en"}' in text


async def test_the_request_stays_open_for_its_next_chunk(replica: EngineReplica, chunk: Chunk) -> None:
    """The fair queue has to know how much of a recording was decoded."""
    await replica.decode(Call("1", "long", chunk))
    assert replica.state().requests >= 1
    opened = replica._open["long"]
    await replica.decode(Call("2", "long", chunk))
    assert replica._open["long"] is opened
    opened.closing and opened.closing.cancel()
    replica._close("long")
    assert "long" not in replica._open


async def test_cancelled_calls_leave_the_queue(replica: EngineReplica, chunk: Chunk) -> None:
    """At most what is in the model's hands is decoded; the sound that waits is zero again."""
    tasks = [asyncio.create_task(replica.decode(Call(str(number), "x", chunk))) for number in range(20)]
    await asyncio.sleep(0)
    assert replica.record_autoscaling_stats()["sound"] > 100
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert replica.record_autoscaling_stats() == {"sound": 0.0}
    answer = await replica.decode(Call("y", "y", chunk))
    assert answer.result is not None


def test_a_preparer_travels(replica: EngineReplica) -> None:
    """Without its cache, and with a vocabulary of its own."""
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    prepare = replica.describe().prepare
    copy = pickle.loads(cloudpickle.dumps(prepare))  # noqa: S301 - our own bytes
    decoding = Decoding(language="en", prompt="Zoë, bread")
    assert copy(voice_message(), decoding).prompt == prepare(voice_message(), decoding).prompt


def test_weights_are_fetched_under_a_lock(tmp_path: object) -> None:
    """The lock is in the folder for weights."""
    settings = Settings(model="tiny.en", cache_dir=tmp_path)
    find_once("tiny.en", settings)
    assert settings.cache_dir is not None
    assert any(path.name.endswith(".lock") for path in settings.cache_dir.iterdir())
