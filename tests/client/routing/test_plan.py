"""`plan()` with a clock of the test's own: no sockets, no sleeping."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from localwhisper_client.events import Attempt, BreakerClosed, BreakerOpened, Fallback
from localwhisper_client.routing.backend import Backend, Signal, State
from localwhisper_client.routing.plan import Call, Ending, Outcome, Probe, Try, Verdict, Wait, backoff
from localwhisper_client.routing.policy import Policy

OK = Outcome(Verdict.ANSWERED, value="words")
OUTAGE = Outcome(Verdict.OUTAGE, "refused")
FAILURE = Outcome(Verdict.FAILURE, "status 500")
WRONG_KEY = Outcome(Verdict.MISCONFIGURED, "status 401")
BAD_CALL = Outcome(Verdict.BAD_REQUEST, "status 400")


def busy(seconds: float | None = None) -> Outcome:
    """Return what a full server answers."""
    return Outcome(Verdict.BUSY, "status 503", retry_after=seconds)


@dataclass
class World:
    """Carries out plans: replies by backend name, a clock that moves when told."""

    policy: Policy = Policy.CLOUD
    names: tuple[str, ...] = ("pc",)
    seconds: float | None = 60.0
    now: float = 1000.0
    takes: float = 0.0
    well: bool = False
    events: list[Any] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    budgets: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.servers = [Backend(name) for name in self.names]
        self.cloud = Backend("cloud", cloud=True)

    def call(self, **replies: Outcome | list[Outcome]) -> Ending:
        """Carry out one call, each backend giving its reply, or its replies in turn."""
        queues = {name: list(reply) if isinstance(reply, list) else None for name, reply in replies.items()}
        self.steps.clear()
        plan = Call(
            self.servers, self.cloud, self.policy, self.seconds, lambda: self.now, lambda: 0.0, self.events.append
        ).plan()
        reply: Any = None
        while True:
            try:
                step = plan.send(reply)
            except StopIteration as end:
                return end.value
            match step:
                case Try(backend, seconds):
                    self.steps.append(backend.name)
                    self.budgets.append(seconds)
                    self.now += self.takes
                    queue = queues[backend.name]
                    reply = replies[backend.name] if queue is None else queue.pop(0)
                case Wait(seconds):
                    self.steps.append(f"wait {seconds:g}")
                    self.now += seconds
                    reply = None
                case Probe(backend, seconds):
                    wait = seconds != 0
                    self.steps.append(f"{'ask' if wait else 'probe'} {backend.name}")
                    if wait:
                        backend.learn(
                            Signal.PROBE_ANSWERED if self.well else Signal.PROBE_FAILED,
                            self.now,
                            "",
                            self.events.append,
                        )
                    reply = self.well if wait else None

    def break_down(self, *names: str) -> None:
        """Open these backends' breakers."""
        for backend in self.servers:
            if backend.name in names:
                backend.learn(Signal.OUTAGE, self.now, "off", lambda _: None)


@pytest.mark.parametrize(
    ("outcome", "steps"),
    [
        (OK, ["pc"]),
        (OUTAGE, ["pc", "cloud"]),
        (FAILURE, ["pc", "cloud"]),
        (busy(), ["pc", "cloud"]),
        (busy(60), ["pc", "cloud"]),
        (WRONG_KEY, ["pc"]),
        (BAD_CALL, ["pc"]),
    ],
)
def test_which_backends_are_tried_under_cloud(outcome: Outcome, steps: list[str]) -> None:
    """The routing table, row by row."""
    world = World()
    ending = world.call(pc=outcome, cloud=OK)
    assert world.steps == steps
    assert ending.outcome is (OK if "cloud" in steps else outcome)


@pytest.mark.parametrize("outcome", [OUTAGE, FAILURE, busy(), WRONG_KEY, BAD_CALL])
def test_local_only_never_asks_the_cloud(outcome: Outcome) -> None:
    """It fails, and says how."""
    world = World(Policy.LOCAL_ONLY)
    ending = world.call(pc=outcome)
    assert world.steps == ["pc"]
    assert ending.outcome is outcome
    assert [line.verdict for line in ending.tried] == [outcome.verdict]


def test_busy_waits_as_long_as_it_is_told_and_the_deadline_allows() -> None:
    """Waits that fit are waited for; the one that does not goes to the next backend."""
    world = World(seconds=10)
    world.call(pc=[busy(3), busy(4), busy(3.5)], cloud=OK)
    assert world.steps == ["pc", "wait 3", "pc", "wait 4", "pc", "cloud"]
    assert world.servers[0].breaker.circuit.failures == 0


def test_a_server_that_says_come_back_at_once_is_not_hammered() -> None:
    """The waits grow by themselves when the server asks for none."""
    world = World(Policy.LOCAL_ONLY, seconds=0.5)
    world.call(pc=busy(0))
    assert world.steps == ["pc", "wait 0.05", "pc", "wait 0.1", "pc", "wait 0.2", "pc"]


def test_an_open_breaker_costs_nothing() -> None:
    """The call goes straight on; a probe is started when one is due, once, and not waited for."""
    world = World()
    world.call(pc=OUTAGE, cloud=OK)
    world.call(cloud=OK)
    assert world.steps == ["cloud"]
    world.now += 2.0
    world.call(cloud=OK)
    assert world.steps == ["probe pc", "cloud"]
    world.call(cloud=OK)
    assert world.steps == ["cloud"]


def test_the_third_failure_in_a_row_opens_the_breaker() -> None:
    """An answer in between forgives."""
    world = World()
    for reply in (FAILURE, FAILURE, OK, FAILURE, FAILURE):
        world.call(pc=reply, cloud=OK)
    assert world.servers[0].breaker.allows_calls()
    world.call(pc=FAILURE, cloud=OK)
    assert world.servers[0].breaker.circuit.state is State.OPEN


def test_without_an_alternative_health_is_asked_before_giving_up() -> None:
    """A server that has just come back answers the next call; audio is sent only after its probe succeeds."""
    world = World(Policy.LOCAL_ONLY)
    world.break_down("pc")
    ending = world.call()
    assert world.steps == ["ask pc"]
    assert ending.outcome.verdict is Verdict.OUTAGE
    world.well = True
    assert world.call(pc=OK).outcome is OK
    assert world.steps == ["ask pc", "pc"]
    assert isinstance(world.events[0], BreakerClosed)


def test_local_servers_are_tried_in_order_and_those_with_an_open_breaker_last() -> None:
    """The next one takes over from one that fails."""
    world = World(Policy.LOCAL_ONLY, names=("pc", "nas", "pi"))
    assert world.call(pc=OUTAGE, nas=FAILURE, pi=OK).outcome is OK
    assert world.steps == ["pc", "nas", "pi"]
    world.now += 5
    assert world.call(nas=OK).outcome is OK
    assert world.steps == ["nas", "probe pc"]
    world.break_down("pc", "nas", "pi")
    world.call()
    assert world.steps == ["ask pc", "ask nas", "ask pi"]
    world.well = True
    world.call(pc=FAILURE, nas=OK)
    assert world.steps == ["ask pc", "pc", "ask nas", "nas"]


def test_wait_retries_the_local_server_until_the_deadline() -> None:
    """Backoff doubles; once the breaker is open the server is probed, and sent no audio; the end is a timeout."""
    world = World(Policy.WAIT, seconds=5)
    ending = world.call(pc=OUTAGE)
    assert world.steps == ["pc", "wait 0.25", "ask pc", "wait 0.5", "ask pc", "wait 1", "ask pc", "wait 2", "ask pc"]
    assert ending.timed_out
    assert ending.outcome.verdict is Verdict.OUTAGE
    assert len(ending.tried) == 2


def test_wait_is_answered_when_the_server_is_back() -> None:
    """It does not wait for longer than needed."""
    world = World(Policy.WAIT, seconds=None)
    world.break_down("pc")
    world.well = True
    assert world.call(pc=[FAILURE, OK]).outcome is OK
    assert world.steps == ["ask pc", "pc", "wait 0.25", "ask pc", "pc"]


def test_time_is_kept_for_the_backends_that_follow() -> None:
    """Half of what is left, while others are left; all of it for the last; for ever without a deadline."""
    world = World(names=("pc", "nas"), takes=10)
    world.call(pc=FAILURE, nas=FAILURE, cloud=OK)
    assert world.budgets == [30, 25, 40]
    world = World(Policy.LOCAL_ONLY, names=("pc", "nas"))
    world.call(pc=FAILURE, nas=OK)
    assert world.budgets == [30, 60]
    world = World(seconds=None)
    world.call(pc=FAILURE, cloud=OK)
    assert world.budgets == [None, None]


def test_the_last_to_be_asked_gets_all_the_time_whatever_place_it_was_given() -> None:
    """The one with the queue is asked last, though it was named first; one whose breaker is open comes after both."""
    world = World(Policy.LOCAL_ONLY, names=("pc", "nas"), takes=10)
    world.servers[0].latency.queued(5.0, now=world.now)
    world.call(pc=FAILURE, nas=FAILURE)
    assert world.steps == ["nas", "pc"]
    assert world.budgets == [30, 50]
    world = World(Policy.LOCAL_ONLY, names=("pc", "nas"), takes=10, well=True)
    world.break_down("nas")
    world.call(pc=FAILURE, nas=FAILURE)
    assert world.steps == ["pc", "ask nas", "nas"]
    assert world.budgets == [30, 50]


def test_a_call_whose_time_is_up_goes_nowhere() -> None:
    """Not to the cloud either."""
    world = World(takes=61)
    ending = world.call(pc=FAILURE)
    assert world.steps == ["pc"]
    assert ending.timed_out


def test_events_of_a_fallback() -> None:
    """Attempt, breaker, fallback, attempt; seconds are those of the attempt."""
    world = World(takes=2)
    world.call(pc=OUTAGE, cloud=OK)
    assert world.events == [
        Attempt("pc", "outage", "refused", 2, cloud=False),
        BreakerOpened("pc", "refused"),
        Fallback("cloud", "refused"),
        Attempt("cloud", "answered", "", 2, cloud=True),
    ]


def test_a_wrong_reply_of_the_driver_is_an_error() -> None:
    """A `Try` must be answered with an outcome."""
    plan = Call([Backend("pc")], Backend("c"), Policy.CLOUD, 1, lambda: 0.0, lambda: 0.0, lambda _: None).plan()
    next(plan)
    with pytest.raises(TypeError, match="Outcome"):
        plan.send(None)


def test_backoff() -> None:
    """Doubled, capped, shortened by up to a quarter, never an overflow."""
    assert [backoff(n, 0.0) for n in (0, 1, 2, 10, 5000)] == [0.25, 0.5, 1.0, 15.0, 15.0]
    assert backoff(0, 1.0) == 0.25 * 0.75
