from __future__ import annotations

import itertools

import pytest

from localwhisper_client.routing.backend import Breaker, Circuit, LatencyEstimate, Rules, Signal, State, after

RULES = Rules(failures=3, cooldown=2.0, longest_cooldown=5.0)
NOW = 100.0

CLOSED = Circuit()
SHAKEN = Circuit(failures=2)
OPEN = Circuit(State.OPEN, openings=1, retry_at=101.0)
DUE = Circuit(State.OPEN, openings=1, retry_at=100.0)
ASKED = Circuit(State.HALF_OPEN, openings=1, retry_at=105.0)
LOST = Circuit(State.HALF_OPEN, openings=1, retry_at=100.0)

TABLE = [
    # before, signal, after
    (CLOSED, Signal.ANSWERED, CLOSED),
    (CLOSED, Signal.OUTAGE, Circuit(State.OPEN, openings=1, retry_at=102.0)),
    (CLOSED, Signal.FAILURE, Circuit(failures=1)),
    (CLOSED, Signal.PROBE, CLOSED),
    (CLOSED, Signal.PROBE_ANSWERED, CLOSED),
    (CLOSED, Signal.PROBE_FAILED, CLOSED),
    (SHAKEN, Signal.ANSWERED, CLOSED),
    (SHAKEN, Signal.OUTAGE, Circuit(State.OPEN, openings=1, retry_at=102.0)),
    (SHAKEN, Signal.FAILURE, Circuit(State.OPEN, openings=1, retry_at=102.0)),
    (SHAKEN, Signal.PROBE, SHAKEN),
    (SHAKEN, Signal.PROBE_ANSWERED, SHAKEN),
    (SHAKEN, Signal.PROBE_FAILED, SHAKEN),
    (OPEN, Signal.ANSWERED, CLOSED),
    (OPEN, Signal.OUTAGE, OPEN),
    (OPEN, Signal.FAILURE, OPEN),
    (OPEN, Signal.PROBE, OPEN),
    (OPEN, Signal.PROBE_ANSWERED, Circuit(failures=2, openings=1, retry_at=101.0)),
    (OPEN, Signal.PROBE_FAILED, OPEN),
    (DUE, Signal.ANSWERED, CLOSED),
    (DUE, Signal.OUTAGE, DUE),
    (DUE, Signal.FAILURE, DUE),
    (DUE, Signal.PROBE, Circuit(State.HALF_OPEN, openings=1, retry_at=105.0)),
    (DUE, Signal.PROBE_ANSWERED, Circuit(failures=2, openings=1, retry_at=100.0)),
    (DUE, Signal.PROBE_FAILED, DUE),
    (ASKED, Signal.ANSWERED, CLOSED),
    (ASKED, Signal.OUTAGE, ASKED),
    (ASKED, Signal.FAILURE, ASKED),
    (ASKED, Signal.PROBE, ASKED),
    (ASKED, Signal.PROBE_ANSWERED, Circuit(failures=2, openings=1, retry_at=105.0)),
    (ASKED, Signal.PROBE_FAILED, Circuit(State.OPEN, openings=2, retry_at=104.0)),
    (LOST, Signal.PROBE, Circuit(State.HALF_OPEN, openings=1, retry_at=105.0)),
]


@pytest.mark.parametrize(("before", "signal", "expected"), TABLE)
def test_transition(before: Circuit, signal: Signal, expected: Circuit) -> None:
    """Each row of the table."""
    assert after(before, signal, NOW, RULES) == expected


def test_the_table_is_whole() -> None:
    """It has a row for every state and signal."""
    assert {(row[0].state, row[1]) for row in TABLE} == set(itertools.product(State, Signal))


def test_the_cooldown_doubles_up_to_its_cap_however_long_the_server_is_off() -> None:
    """2, 4, 5, 5 … seconds, and no overflow after months."""
    circuit, waits = after(CLOSED, Signal.OUTAGE, NOW, RULES), []
    for _ in range(2000):
        waits.append(circuit.retry_at - NOW)
        circuit = after(Circuit(State.HALF_OPEN, openings=circuit.openings), Signal.PROBE_FAILED, NOW, RULES)
    assert waits[:4] == [2.0, 4.0, 5.0, 5.0]
    assert waits[-1] == 5.0


def test_one_probe_at_a_time() -> None:
    """Of many calls after the cooldown, one may probe."""
    breaker = Breaker(RULES)
    breaker.signal(Signal.OUTAGE, NOW)
    assert not breaker.allows_calls()
    assert not breaker.claims_probe(NOW + 1)
    assert [breaker.claims_probe(NOW + 2) for _ in range(3)] == [True, False, False]
    breaker.signal(Signal.PROBE_ANSWERED, NOW + 2)
    assert breaker.allows_calls()
    assert breaker.circuit.state is State.CLOSED


def test_the_latency_estimate() -> None:
    """Queue and latency add up; calls in flight count; the queue shrinks, and an old measurement is dropped."""
    latency = LatencyEstimate()
    assert latency.expected(0.0) == 0.0
    latency.answered(2.0, None, now=100.0)
    assert latency.expected(100.0) == 2.0
    latency.answered(3.0, 10.0, now=100.0)
    assert latency.expected(100.0) == 2.3
    latency.queued(5.0, now=100.0)
    assert latency.expected(101.0) == 6.3
    assert latency.expected(106.0) == 2.3
    latency.began()
    assert latency.expected(106.0) == 4.6
    latency.ended()
    assert latency.expected(161.0) == 0.0
    latency.answered(60.0, 3600.0, now=161.0)
    assert latency.expected(161.0) == 0.2
