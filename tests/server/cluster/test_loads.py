"""Which replica a face sends the next chunk to."""

from __future__ import annotations

from localwhisper_server.cluster.loads import Loads, loads_of
from localwhisper_server.cluster.messages import Call
from tests.server.cluster.test_scheduler import state
from tests.server.engine_double import chunk


def _call(number: str, seconds: float = 8.0) -> Call:
    return Call(number, f"request {number}", chunk(seconds=seconds))


def _with(*names: str) -> Loads:
    loads = Loads()
    loads.running(names)
    return loads


def test_the_replica_with_the_least_sound_comes_first() -> None:
    """One long chunk is more work than two short ones."""
    loads = _with("a", "b")
    for number, name, seconds in (("1", "a", 28.0), ("2", "b", 4.0), ("3", "b", 4.0)):
        call = _call(number, seconds)
        loads.begun(call)
        loads.sent(call, name)
    assert loads.ordered(["a", "b"]) == ["b", "a"]


def test_a_fast_replica_may_have_more() -> None:
    """Work is seconds of sound divided by the replica's own speed."""
    loads = _with("a", "b")
    loads.told(state("a", speed=40.0))
    loads.told(state("b", speed=10.0))
    for number, name in (("1", "a"), ("2", "a"), ("3", "b")):
        call = _call(number)
        loads.begun(call)
        loads.sent(call, name)
    assert loads.ordered(["a", "b"]) == ["a", "b"]


def test_other_faces_count_too() -> None:
    """A replica tells how much sound it has in all."""
    loads = _with("a", "b")
    loads.told(state("a", sound=100.0))
    assert loads.ordered(["a", "b"]) == ["b", "a"]
    loads.told(state("a", sound=0.0))
    assert loads.ordered(["a", "b"]) == ["a", "b"]


def test_a_call_that_moves_counts_once() -> None:
    """And one that has ended is not counted when the router is late."""
    loads = _with("a", "b")
    call = _call("1")
    loads.begun(call)
    loads.sent(call, "a")
    loads.sent(call, "b")
    assert loads.ordered(["b", "a"]) == ["a", "b"]
    loads.ended(call)
    loads.sent(call, "b")
    assert loads.ordered(["b", "a"]) == ["b", "a"]


def test_an_hour_long_file_keeps_no_message_out() -> None:
    """The wait of a new request counts at most one share of each other request, as the fair queue does."""
    loads = _with("a")
    loads.told(state("a", speed=10.0))
    for number in range(8):
        call = Call(str(number), "one request", chunk(seconds=28.0))
        loads.begun(call)
        loads.sent(call, "a")
    assert loads.queue_seconds(10.0) == 1.0


def test_replicas_come_and_go() -> None:
    """What a lost one had is forgotten; what one says that is gone is ignored."""
    loads = _with("a", "b")
    loads.told(state("b", speed=30.0))
    loads.lost("a")
    loads.told(state("a", speed=90.0))
    assert (loads.count, loads.speed, loads.loaded) == (1, 30.0, True)
    loads.running([])
    assert (loads.count, loads.queue_seconds(1.0), loads.loaded) == (0, 0.0, False)


def test_one_table_for_each_deployment() -> None:
    """The router and the scheduler of one process find the same."""
    assert loads_of("x") is loads_of("x")
    assert loads_of("x") is not loads_of("y")
