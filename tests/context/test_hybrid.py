"""An agent beside the router: on a router and on an engine, with probes, with holdouts, and with an
agent that breaks.
"""

import time

import pytest

from arcpoint_ce.context.agent import Trace, Verdict
from arcpoint_ce.context.hybrid import Gate, HybridRouter
from arcpoint_ce.engine.engine import ContextEngine
from arcpoint_ce.routing.records import Backend, Outcome, Request
from arcpoint_ce.routing.router import Router

FLEET = [Backend("east", 8.0), Backend("north", 8.0), Backend("west", 8.0)]


class AskAll(Gate):
    def __call__(self, doubt, worth=1.0):
        return True


class Wants:
    "An agent that wants one backend, or raises what it is given."

    def __init__(self, backend="west", raises=None, wait_s=0.0):
        self.backend, self.raises, self.wait_s, self.asked = backend, raises, wait_s, []

    def choose(self, request, viable, router, at_s):
        self.asked.append((tuple(viable), router))
        if router not in viable:
            raise ValueError(f"the router's choice {router!r} is not among the viable backends")
        time.sleep(self.wait_s)
        if self.raises is not None:
            raise self.raises
        return Verdict(
            self.backend, None, True, "it is better", 0.9, (), Trace("t", time.monotonic), {}
        )


def routers():
    return [Router(FLEET), ContextEngine(FLEET)]


def in_flight(router) -> int:
    return sum(getattr(router, "router", router).in_flight().values())


def until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.01)


@pytest.mark.parametrize("router", routers(), ids=["router", "engine"])
def test_everything_goes_through_it(router):
    h = HybridRouter(router, Wants(), AskAll())
    assert {c.backend for c in h.rank(Request(), 0.0)} == {"east", "north", "west"}
    d = h.decide(Request(tokens_out=100), 1.0)
    assert d.backend == "west" and in_flight(router) == 1
    assert (
        h.progress(d, 10, 2.0) and h.retry(d, 2.5) in ("east", "north") and in_flight(router) == 2
    )
    assert (
        h.observe(Outcome("west", 1.0, 900.0, decision=d.id))
        and h.cancel(d, 3.0)
        and in_flight(router) == 0
    )
    assert h.cancel(h.claim(Request(), "north", 4.0), 5.0)
    h.close()


def test_its_decisions_on_an_engine_are_stored_like_every_other_one():
    engine = ContextEngine(FLEET)
    h = HybridRouter(engine, Wants(), AskAll())
    d = h.decide(Request("r1"), 1.0)
    h.observe(Outcome(d.backend, 1.0, 80.0, decision=d.id))
    engine.store.flush()
    (row,) = engine.store.joined(id=d.id)
    assert (row["backend"], row["request"], [o["fate"] for o in row["outcomes"]]) == (
        "west",
        "r1",
        ["joined"],
    )
    others = [r for r in engine.store.joined() if r["id"] != d.id]
    assert [o["error"] for r in others for o in r["outcomes"]] == ["cancelled"] * len(others)


@pytest.mark.parametrize("router", routers(), ids=["router", "engine"])
def test_a_probe_is_given_and_not_taken_away(router):
    books = getattr(router, "router", router)
    books.force("east", "half_open", 0.0, "on trial")
    agent = Wants()
    h = HybridRouter(router, agent, AskAll(), keep_s=0.0)
    made = [h.decide(Request(f"r{k}"), 1.0 + 0.01 * k) for k in range(100)]
    probes = [d for d in made if d.is_probe]
    assert probes and all(d.backend == "east" for d in probes)
    assert all(router in viable and "east" not in viable for viable, router in agent.asked)
    assert h.counts["failed"] == 0 and h.counts["decided"] == 100
    for d in made:
        h.observe(Outcome(d.backend, d.at_s, 50.0, decision=d.id))
    assert in_flight(router) == 0


ERRORS = [
    ValueError("bad"),
    KeyError("x"),
    OSError("no net"),
    TimeoutError("inside"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_whatever_the_agent_raises_stays_here(error):
    engine = ContextEngine(FLEET)
    agent = Wants(raises=error)
    h = HybridRouter(engine, agent, AskAll())
    made = [h.decide(Request(), float(k)) for k in range(3)]  # the same kind, asked about each time
    assert len(agent.asked) == 3 and h.counts["failed"] == 3 and h.counts["asked"] == 3
    assert in_flight(engine) == 3
    for d in made:
        assert h.observe(Outcome(d.backend, d.at_s, 50.0, decision=d.id))
    # an agent's thread may end a little later
    until(lambda: (engine.store.flush(), len(engine.store.rows("events")) == 3)[1])
    events = engine.store.rows("events")
    assert in_flight(engine) == 0 and [e["what"] for e in events] == ["agent failed"] * 3
    assert type(error).__name__ in events[0]["why"]


def test_an_agent_that_fails_after_the_deadline_is_counted_and_asked_again():
    engine = ContextEngine(FLEET)
    agent = Wants(raises=OSError("late"), wait_s=0.3)
    h = HybridRouter(engine, agent, AskAll(), deadline_s=0.01)
    first = h.decide(Request(), 1.0)
    until(lambda: h.counts["failed"] == 1)
    h.decide(Request(), 2.0)
    until(lambda: h.counts["failed"] == 2)
    assert (
        first.backend in ("east", "north", "west")
        and len(agent.asked) == 2
        and h.counts["late"] == 2
    )
    assert in_flight(engine) == 2


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "west",
        Verdict("mars", None, True, "", None, (), None, {}),
        Verdict([], None, True, "", None, (), None, {}),
    ],
)
def test_an_answer_that_is_none_changes_nothing(answer):
    agent = Wants()
    agent.choose = lambda *a: answer
    router = Router(FLEET)
    h = HybridRouter(router, agent, AskAll())
    d = h.decide(Request(), 1.0)
    assert h.counts["failed"] + h.counts["refused"] == 1 and in_flight(router) == 1
    assert h.observe(Outcome(d.backend, 1.0, 50.0, decision=d.id))


def test_a_gate_or_a_worth_that_raises_costs_nothing():
    router = Router(FLEET)
    h = HybridRouter(router, Wants(), AskAll(), worth=lambda r: 1 / 0)
    d = h.decide(Request(), 1.0)
    assert (
        h.counts["failed"] == 1
        and in_flight(router) == 1
        and h.observe(Outcome(d.backend, 1.0, 50.0, decision=d.id))
    )


def test_who_stops_the_caller_leaves_no_reservation():
    def stop(request):
        raise KeyboardInterrupt

    router = Router(FLEET)
    with pytest.raises(KeyboardInterrupt):
        HybridRouter(router, Wants(), AskAll(), worth=stop).decide(Request(), 1.0)
    assert in_flight(router) == 0


def test_held_out_requests_are_not_moved():
    engine = ContextEngine(FLEET, holdout=0.5)
    h = HybridRouter(engine, Wants(), AskAll())
    requests = [Request(f"r{k}") for k in range(200)]
    went = [h.decide(r, 0.01 * k).backend for k, r in enumerate(requests)]
    held = [b for b, r in zip(went, requests) if engine.rollout.holdout.held(r)]
    free = [b for b, r in zip(went, requests) if not engine.rollout.holdout.held(r)]
    assert len(held) > 50 and set(held) == {"east", "north", "west"} and set(free) == {"west"}
