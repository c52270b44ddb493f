"""An agent beside the router: on a router and on an engine, with probes, with holdouts, with wishes
that conflict, and with an agent that breaks.
"""

import time
from random import Random

import anthropic
import pytest

from arcpoint_ce.context.agent import Agent, Trace, Verdict
from arcpoint_ce.context.hybrid import Conflict, Gate, HybridRouter
from arcpoint_ce.context.questions import Context
from arcpoint_ce.engine.engine import ContextEngine
from arcpoint_ce.proof.scripted_model import Says, Stub
from arcpoint_ce.routing.decisions import NoBackend
from arcpoint_ce.routing.records import Backend, Forecast, ForecastTable, Outcome, Request
from arcpoint_ce.routing.router import Router

FLEET = [Backend("east", 8.0), Backend("north", 8.0), Backend("west", 8.0)]


class AskAll(Gate):
    "Lets every decision through, also those without a conflict."

    def __call__(self, conflict, worth=1.0):
        return True


class Wants:
    "An agent that wants one backend, or raises what it is given."

    def __init__(self, backend="west", raises=None, wait_s=0.0):
        self.backend, self.raises, self.wait_s = backend, raises, wait_s
        self.asked, self.told = [], []

    def choose(self, request, viable, router, at_s, conflict=None):
        self.asked.append((tuple(viable), router))
        self.told.append(conflict)
        if router is not None and router not in viable:
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


# Two regions, and every quality has its price.
WORLD = [
    Backend("eu-large", 8.0, region="eu", price_in=3.0, price_out=12.0, quality=0.9),
    Backend("eu-small", 8.0, region="eu", price_in=0.2, price_out=0.8, quality=0.7, tags=("json",)),
    Backend("us-mid", 8.0, region="us", price_in=0.8, price_out=3.0, quality=0.86, tags=("json",)),
]
TOKENS = dict(tokens_in=1000, tokens_out=500)
TORN = Request("torn", **TOKENS, regions=("eu",), min_quality=0.85, max_cost_usd=0.003)


def foresee(router, **middle_ms):
    spread = (0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 1.8)
    table = {}
    for name, ms in middle_ms.items():
        levels_ms = tuple(ms * x for x in spread)
        table[name] = Forecast(name, 0.0, 300.0, levels_ms, levels_ms)
    getattr(router, "router", router).swap(ForecastTable(1, 0.0, 1e9, table), 0.0)


def wishing(**wishes) -> Request:
    return Request(**TOKENS, **wishes)


@pytest.fixture(params=[Router, ContextEngine], ids=["router", "engine"])
def torn_router(request):
    "Whose east is dear and quick, and whose others are cheap and slow."
    router = request.param(WORLD)
    foresee(router, **{"eu-large": 60.0, "eu-small": 180.0, "us-mid": 180.0})
    return router


@pytest.mark.parametrize(
    "choice, cost_usd, floor", [("eu-large", 0.009, 0.85), ("eu-small", 0.003, 0.7)]
)
def test_a_refusal_by_soft_wishes_alone_may_be_settled(torn_router, choice, cost_usd, floor):
    with pytest.raises(NoBackend):
        torn_router.decide(TORN, 0.5)
    agent = Wants(choice)
    h = HybridRouter(torn_router, agent)
    d = h.decide(TORN, 1.0)
    assert d.backend == choice and in_flight(torn_router) == 1 and h.counts["taken"] == 1
    assert agent.asked == [(("eu-large", "eu-small"), None)]
    (told,) = agent.told
    assert told["wishes"] == ["cost", "quality", "region"] and told["router_refuses"]
    prices = {c["backend"]: (c.get("extra_usd"), c.get("missing_quality")) for c in told["choices"]}
    assert prices["eu-large"] == (pytest.approx(0.006), None)
    assert prices["eu-small"] == (None, pytest.approx(0.15))
    # relaxed by what this backend needs, and by no more
    assert d.request.max_cost_usd == pytest.approx(cost_usd) and d.request.min_quality == floor
    assert d.request.regions == ("eu",) and "gave way" in d.reasons[0]
    assert h.observe(Outcome(choice, 1.0, 50.0, decision=d.id)) and in_flight(torn_router) == 0


def test_what_gave_way_is_written_down():
    engine = ContextEngine(WORLD)
    d = HybridRouter(engine, Wants("eu-large")).decide(TORN, 1.0)
    engine.store.flush()
    (event,) = engine.store.rows("events")
    assert (event["what"], event["backend"]) == ("wish gave way", "eu-large")
    assert event["why"] == "cost gave way (0.0060 USD more)"
    (row,) = engine.store.rows("decisions", id=d.id)
    assert row["backend"] == "eu-large" and row["propensity"] == 1.0


def test_the_agents_trace_names_the_wish_that_gives_way():
    engine = ContextEngine(WORLD)
    answer = dict(backend="eu-large", confidence=0.9, reasoning="It costs 0.006 USD more.")
    with Stub(lambda body: Says("", [("answer", answer)])) as stub:
        client = anthropic.Anthropic(api_key="none", base_url=stub.url)
        agent = Agent(Context(engine.store), client=client, store=engine.store)
        d = HybridRouter(engine, agent, deadline_s=20.0).decide(TORN, 1.0)
    engine.store.flush()
    trace = Trace.read(engine.store.rows("traces")[0])
    assert d.backend == "eu-large" and trace.steps[-1].data["gives_way"] == ["cost"]
    asked = trace.steps[0].data["request"]
    assert asked["router_would_choose"] is None
    assert asked["conflict"]["choices"][0]["extra_usd"] == pytest.approx(0.006)


@pytest.mark.parametrize("named", ["us-mid", "mars", None, ["eu-large"]])
def test_hard_rules_never_give_way(torn_router, named):
    h = HybridRouter(torn_router, Wants(named))
    with pytest.raises(NoBackend, match="over the limit"):
        h.decide(TORN, 1.0)
    assert in_flight(torn_router) == 0 and h.counts["failed"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_whatever_an_agent_names_the_places_and_abilities_hold(seed):
    rng = Random(seed)
    router = Router(WORLD)
    foresee(router, **{"eu-large": 60.0, "eu-small": 180.0, "us-mid": 120.0})
    agent = Wants()
    h = HybridRouter(router, agent, Gate(1.0), keep_s=0.0)
    for k in range(200):
        agent.backend = rng.choice([b.name for b in WORLD])
        request = wishing(
            regions=rng.choice([(), ("eu",), ("us",)]),
            tags=rng.choice([(), ("json",)]),
            min_quality=rng.choice([0.0, 0.8, 0.88, 0.95]),
            max_cost_usd=rng.choice([1.0, 0.003, 0.0001]),
            slo_ms=rng.choice([None, 100.0, 150.0]),
            session=rng.choice([None, "a", "b"]),
        )
        try:
            d = h.decide(request, 0.01 * k)
        except NoBackend:
            continue
        place = next(b for b in WORLD if b.name == d.backend)
        assert not request.regions or place.region in request.regions
        assert set(request.tags) <= set(place.tags)
        h.cancel(d, 0.01 * k)
    assert h.counts["taken"] > 20 and h.counts["failed"] == 0 and in_flight(router) == 0


@pytest.mark.parametrize("hard", [dict(regions=("mars",)), dict(tags=("vision",))])
def test_nobody_is_asked_where_a_hard_rule_refuses(hard):
    agent = Wants("eu-large")
    with pytest.raises(NoBackend):
        HybridRouter(Router(WORLD), agent).decide(wishing(max_cost_usd=1e-9, **hard), 1.0)
    assert not agent.asked


def test_without_an_answer_in_time_the_refusal_stands():
    router = Router(WORLD)
    h = HybridRouter(router, Wants("eu-large", wait_s=0.3), deadline_s=0.01)
    with pytest.raises(NoBackend, match="over the limit"):
        h.decide(TORN, 1.0)
    assert h.counts["late"] == 1 and in_flight(router) == 0
    until(lambda: not h.inquiries.running)
    assert h.decide(TORN, 2.0).backend == "eu-large"  # it came later, and serves the next one


def test_without_an_answer_in_time_the_routers_decision_stands(torn_router):
    h = HybridRouter(torn_router, Wants("eu-large", wait_s=0.3), deadline_s=0.01)
    d = h.decide(wishing(regions=("eu",), max_cost_usd=0.003, slo_ms=100.0), 1.0)
    assert d.backend == "eu-small" and h.counts["late"] == 1 and in_flight(torn_router) == 1


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3)])
def test_an_agent_that_breaks_leaves_the_refusal(error):
    router = Router(WORLD)
    h = HybridRouter(router, Wants(raises=error))
    with pytest.raises(NoBackend):
        h.decide(TORN, 1.0)
    assert h.counts["failed"] == 1 and in_flight(router) == 0


def test_a_proposal_passes_the_routers_own_limits_again():
    router = Router(WORLD)
    h = HybridRouter(router, Wants("eu-large"), keep_s=1e9)
    h.cancel(h.decide(TORN, 1.0), 1.0)
    router.force("eu-large", "open", 2.0, "down")
    with pytest.raises(NoBackend):
        h.decide(TORN, 3.0)
    assert h.counts["taken"] == 1 and in_flight(router) == 0


def test_a_limit_that_only_a_dearer_backend_meets_is_a_conflict(torn_router):
    agent = Wants("eu-large")
    h = HybridRouter(torn_router, agent)
    d = h.decide(wishing(regions=("eu",), max_cost_usd=0.003, slo_ms=100.0), 1.0)
    assert d.backend == "eu-large" and agent.told[0]["wishes"] == ["cost", "limit"]
    assert agent.asked == [(("eu-large", "eu-small"), "eu-small")] and in_flight(torn_router) == 1
    late = {c["backend"]: c.get("extra_ms") for c in agent.told[0]["choices"]}
    assert late["eu-large"] is None and late["eu-small"] == pytest.approx(80.0)


@pytest.mark.parametrize(
    "request_",
    [
        wishing(),
        wishing(slo_ms=200.0),
        wishing(slo_ms=20.0),  # nobody meets it: lost whatever is chosen
        wishing(slo_ms=100.0, min_quality=0.8),
        wishing(regions=("us",), max_cost_usd=0.003, min_quality=0.8),
    ],
)
def test_nobody_is_asked_where_one_backend_fulfils_everything(torn_router, request_):
    agent = Wants("eu-large")
    h = HybridRouter(torn_router, agent)
    for k in range(30):
        h.cancel(h.decide(request_, 1.0 + k), 1.0 + k)
    assert not agent.asked and h.counts["decided"] == 30


def test_doubt_about_latency_alone_asks_nobody():
    "Errors, slow answers and a crowd are the router's business."
    router = Router(FLEET)
    agent = Wants()
    h = HybridRouter(router, agent)
    for k in range(200):
        d = h.decide(Request(), 0.1 * k)
        if k % 2:
            ok = k % 4 == 1
            h.observe(Outcome(d.backend, 0.1 * k, 5000.0, ok=ok, decision=d.id))
    assert not agent.asked and h.counts["decided"] == 200


def test_a_request_of_little_worth_is_not_asked_about():
    agent = Wants("eu-large")
    h = HybridRouter(Router(WORLD), agent, worth=lambda r: float(r.priority))
    with pytest.raises(NoBackend):
        h.decide(TORN, 1.0)
    assert not agent.asked
    assert h.decide(TORN._replace(priority=1), 2.0).backend == "eu-large"


def test_a_session_that_would_have_to_move_is_a_conflict():
    router = Router(WORLD)
    foresee(router, **{"eu-large": 60.0, "eu-small": 60.0, "us-mid": 60.0})
    agent = Wants("us-mid")
    h = HybridRouter(router, agent)
    h.cancel(h.decide(wishing(session="talk", tags=("json",), regions=("us",)), 1.0), 1.0)
    foresee(router, **{"eu-large": 60.0, "eu-small": 60.0, "us-mid": 900.0})
    talk = wishing(session="talk", slo_ms=300.0)
    d = h.decide(talk, 2.0)
    assert d.backend == "us-mid" and set(agent.told[0]["wishes"]) == {"affinity", "limit"}
    router.force("us-mid", "open", 3.0, "down")  # its cache is out of reach: nothing to weigh
    h.cancel(h.decide(talk, 4.0), 4.0)
    assert len(agent.asked) == 1


def test_an_answer_settles_only_the_same_conflict():
    agent = Wants("eu-large")
    h = HybridRouter(Router(WORLD), agent, keep_s=1e9)
    for k in range(3):
        h.decide(TORN, 1.0 + k)
    assert len(agent.asked) == 1 and h.counts["reused"] == 2
    agent.backend = "us-mid"
    d = h.decide(TORN._replace(regions=("us",), min_quality=0.95), 5.0)
    assert d.backend == "us-mid" and len(agent.asked) == 2


def test_another_attempt_keeps_to_the_compromise():
    dear = Backend("eu-huge", 8.0, region="eu", price_in=30.0, price_out=120.0, quality=0.95)
    router = Router([*WORLD, dear])
    h = HybridRouter(router, Wants("eu-large"))
    d = h.decide(TORN, 1.0)
    assert h.retry(d, 2.0) is None  # not the dearer one, not the poorer one, not abroad
    assert h.cancel(d, 3.0) and in_flight(router) == 0


def test_a_choice_that_is_worse_in_every_respect_is_not_offered():
    twin = Backend("eu-twin", 8.0, region="eu", price_in=6.0, price_out=24.0, quality=0.9)
    agent = Wants("eu-twin")
    with pytest.raises(NoBackend):
        HybridRouter(Router([*WORLD, twin]), agent).decide(TORN, 1.0)
    assert agent.asked[0][0] == ("eu-large", "eu-small")


def test_an_unknown_quality_is_told_as_unknown():
    plain = Backend("eu-plain", 8.0, region="eu", price_in=0.2, price_out=0.8)
    agent = Wants("eu-plain")
    d = HybridRouter(Router([WORLD[0], plain]), agent).decide(TORN, 1.0)
    (told,) = [c for c in agent.told[0]["choices"] if c["backend"] == "eu-plain"]
    assert told["breaks"] == ["quality"] and told["missing_quality"] is None
    assert d.backend == "eu-plain" and d.request.min_quality == 0.0


def test_a_gate_is_told_the_conflict_of_each_decision():
    seen = []

    class Listens(Gate):
        def __call__(self, conflict, worth=1.0):
            seen.append(conflict)
            return super().__call__(conflict, worth)

    h = HybridRouter(Router(WORLD), Wants("eu-large"), Listens())
    h.decide(wishing(), 1.0)
    h.decide(TORN, 2.0)
    assert seen[0] is None and isinstance(seen[1], Conflict) and seen[1].refused
