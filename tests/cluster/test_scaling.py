"""More sound than a replica should have waiting brings another one."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.cluster.test_cluster import load, until

if TYPE_CHECKING:
    from tests.cluster.conftest import Cluster

pytestmark = [pytest.mark.model, pytest.mark.anyio]
MODEL = "tiny.en"
REPLICAS = 1
OPTIONS = ("--max-replicas", "2", "--sound", "20", "--max-per-address", "0")
SECONDS = 120.0


async def test_load_brings_a_replica(cluster: Cluster) -> None:
    """16 clients have some 150 seconds of sound waiting; every request is answered meanwhile."""
    over, answers = asyncio.Event(), Counter[str]()
    loading = asyncio.create_task(load(cluster, over, answers))
    assert cluster.replicas() == 1
    took = await until(lambda: cluster.replicas() == 2, SECONDS)
    over.set()
    await loading
    assert set(answers) == {"200"}, answers
    print(f"two replicas after {took:.0f} s")  # noqa: T201 - with -s
