"""The simulation of `benchmarks/capacity.py`: its arithmetic where the answer is known."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import capacity

COSTS = capacity.Costs(
    batch=0.1,
    chunk=0.1,
    frame=0.0002,
    second=0.01,
    together=1.25,
    front=0.05,
    front_second=0.01,
    workers=2,
    limits={"items": 8, "frames": 8000, "share": 1300, "end": 8000},
)


def _alone(seconds: float) -> float:
    """A message of so many seconds: upload, features, one batch with the smallest window."""
    return 0.05 + 0.01 * seconds + 0.1 + 0.1 + 0.0002 * 1000 + 0.01 * seconds


def test_a_message_alone_takes_what_its_parts_take() -> None:
    """Nothing waits."""
    ((_, _, latency),) = capacity.Cluster(3, COSTS).run([(0.0, 5.0)]).requests
    assert latency == pytest.approx(_alone(5.0))


def test_two_messages_on_one_machine_slow_each_other() -> None:
    """The second one begins beside the first and takes `together` times as long; on two machines it does not."""
    together = capacity.Cluster(1, COSTS).run([(0.0, 5.0), (0.0, 5.0)]).requests
    assert max(latency for *_, latency in together) == pytest.approx(0.1 + 1.25 * 0.45)
    apart = capacity.Cluster(2, COSTS).run([(0.0, 5.0), (0.0, 5.0)]).requests
    assert max(latency for *_, latency in apart) == pytest.approx(_alone(5.0))


def test_a_long_recording_is_spread_and_lets_messages_pass() -> None:
    """Four machines need about a quarter of the time; a message during an hour waits for one batch at most."""
    one, four = (capacity.Cluster(number, COSTS).run([(0.0, 3600.0)]).requests[0][2] for number in (1, 4))
    assert four < 0.3 * one
    hour = capacity.Cluster(1, COSTS).run([(0.0, 3600.0), (20.0, 5.0)]).requests
    longest = COSTS.together * (COSTS.batch + COSTS.chunk + COSTS.frame * 3000 + COSTS.second * 28)
    assert min(latency for *_, latency in hour) < 2 * longest + _alone(5.0)


def test_every_request_of_a_day_is_answered() -> None:
    """None is lost in the queues, whatever the load; and most come by day."""
    arrivals = capacity.day(random.Random(3), 0.02, 0.0, capacity.DAY)  # noqa: S311 - no secret
    outcome = capacity.Cluster(2, COSTS).run(arrivals)
    assert sorted((at, seconds) for at, seconds, _ in outcome.requests) == sorted(arrivals)
    by_day = sum(8 * 3600 < at < 20 * 3600 for at, _ in arrivals)
    assert by_day > 0.7 * len(arrivals)


def test_more_load_needs_more_replicas() -> None:
    """The fewest with which the target is met: with one less it is not."""
    few, many = (capacity.replicas_for(COSTS, rate, requests=1000) for rate in (1.0, 20.0))
    assert few is not None
    assert many is not None
    assert few < many
    enough = capacity.busiest(COSTS, many, 20.0, requests=1000)
    assert enough is not None
    assert enough.p95() <= capacity.TARGET_SECONDS
    assert capacity.busiest(COSTS, many - 1, 20.0, target=capacity.TARGET_SECONDS, requests=1000) is None
    assert capacity.replicas_for(COSTS, 20.0, most=2, requests=1000) is None
