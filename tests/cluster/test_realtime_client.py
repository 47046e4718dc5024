"""The same realtime sessions of our client as against one process, against two replicas behind a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_realtime_client import *  # noqa: F403 - all of its tests, and its marks
from tests.e2e.test_realtime_client import KEY

if TYPE_CHECKING:
    from tests.cluster.conftest import Cluster

MODEL = "tiny.en"
OPTIONS = ("--api-key", KEY)


@pytest.fixture(scope="module")
def guarded(cluster: Cluster) -> Cluster:
    """A cluster with a key."""
    return cluster
