"""The engine in the fleet: what a plain program gets is what the laboratory measures, and the books
of many gateways balance.
"""

import warnings
from math import inf

import numpy as np
import pytest
from helpers import Program
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce import Backend
from arcpoint_ce.lab.contest import _engine_at, ours
from arcpoint_ce.lab.fleet import Fleet, ServiceCurve, SimBackend
from arcpoint_ce.lab.gateway import EngineGateway, lab_engine
from arcpoint_ce.lab.workloads import Lengths, Tokens, poisson, with_slo
from arcpoint_ce.lab.worlds import Setting, World

CURVE = ServiceCurve((1.0, 16.0, 32.0), (20.0, 24.0, 40.0))
WORK = with_slo(
    poisson(12.0, 800, 1, tokens=Tokens(Lengths(500.0, 0.5), Lengths(100.0, 0.5))), 2.5, 24.0
)


def gateway(gateways=1, **how):
    return EngineGateway(
        lambda b, seed: lab_engine(b, seed, slo_ms=100.0, slo_tok_ms=60.0, gateways=gateways, **how)
    )


def fleet_of(gateways, **kw):
    sims = [
        SimBackend(Backend(n, capacity=32.0, price_out=1.0), CURVE, slots=32, queue=16)
        for n in "abc"
    ]
    return Fleet(sims, gateways, **(dict(seed=1, timeout_s=20.0) | kw))


def balanced(g, now):
    "Nothing is in flight any more, and no reservation is left."
    g.router.roll(now + 1e4)
    assert sum(g.router.in_flight().values()) == 0 and not g.router._reservations.open
    assert g.router._signals.load == pytest.approx([0.0] * 3, abs=1e-9)  # no work is left either
    assert all(not f.running for f in g.router.feature_map().values())
    assert g.router.counts["expired"] == g.router.counts["ignored"] == 0 and g.engine.failures == 0


# ---- what a program gets


def in_world(world, at_the_door):
    return world.fleet([at_the_door]).run(world.workload)


@pytest.mark.parametrize("streams", [0.0, 1.0])
@pytest.mark.parametrize("forecaster", ["none", "room", "auto"])
def test_a_program_decides_as_the_laboratorys_contender(forecaster, streams):
    world = World(Setting("memoryless_surge", 3, n=1200, retries=1, streams=streams))
    lab = EngineGateway(lambda b, seed: _engine_at(world, b, seed, forecaster=forecaster))
    program = Program(world, forecaster)
    a, b = in_world(world, lab), in_world(world, program)
    assert a.first.tolist() == b.first.tolist() and a.end_s.tolist() == b.end_s.tolist()
    assert lab.engine.router.counts == program.engine.router.counts and program.engine.failures == 0
    assert lab.engine.router.table == program.engine.router.table


def test_the_reactive_contender_is_the_engine_with_nothing_behind_it():
    world = World(Setting("gray_failure", 2, n=800))
    assert (
        in_world(world, ours(world, "none")).end_s.tolist()
        == in_world(world, Program(world, "none")).end_s.tolist()
    )


def test_a_programs_clock_may_begin_anywhere():
    world = World(Setting("memoryless_surge", 3, n=1200))
    a, b = (
        in_world(world, Program(world, "none")),
        in_world(world, Program(world, "none", epoch_s=1.7e9)),
    )
    assert (a.first == b.first).mean() > 0.9 and abs(
        int(a.violated.sum()) - int(b.violated.sum())
    ) <= 6


# ---- books


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4),
    seed=st.integers(0, 50),
    retries=st.integers(0, 2),
    hedge_s=st.sampled_from((inf, 2.0)),
    streams=st.sampled_from((0.0, 0.5, 1.0)),
    policy=st.sampled_from(("auto", "head_room", "p2c")),
    forecaster=st.sampled_from(("none", "room")),
)
def test_the_books_of_many_gateways_balance_in_trouble(
    n, seed, retries, hedge_s, streams, policy, forecaster
):
    gateways = [gateway(n, policy=policy, forecaster=forecaster) for _ in range(n)]
    fleet = fleet_of(gateways, seed=seed, retries=retries, hedge_s=hedge_s, streams=streams)
    fleet.at(10.0, lambda f, t: f.set("a", down="hang"))
    fleet.at(15.0, lambda f, t: f.set("b", error_rate=0.3))
    fleet.at(20.0, lambda f, t: f.kill("b"))
    fleet.at(30.0, lambda f, t: f.set("a", down=None))
    fleet.at(35.0, lambda f, t: f.set("c", others=40.0, delay_ms=400.0))
    r = fleet.run(WORK.head(400))
    assert len(r) == 400
    for g in gateways:
        balanced(g, fleet.now)
    counts = [g.router.counts for g in gateways]
    assert sum(c["decided"] for c in counts) <= 400
    assert hedge_s < inf or sum(c["observed"] for c in counts) == r.attempts.sum()
    assert sum(c["observed"] for c in counts) <= r.attempts.sum()


def test_every_attempt_is_decided_and_observed():
    g = gateway()
    r = fleet_of([g]).run(WORK)
    assert g.router.counts["decided"] == g.router.counts["observed"] == r.attempts.sum() == 800
    assert abs(g.length - WORK.tokens_out.mean()) < 40  # the length told to the engine is learned


def test_retries_are_attempts_of_one_decision():
    g = gateway()
    fleet = fleet_of([g], retries=2)
    fleet.at(5.0, lambda f, t: f.set("a", error_rate=0.5))
    r = fleet.run(WORK)
    assert (
        r.attempts.sum() > 810
        and g.router.counts["decided"] == 800
        and g.router.counts["observed"] == r.attempts.sum()
    )
    balanced(g, fleet.now)


def test_hedges_that_lose_give_back_what_they_had_reserved():
    g = gateway()
    fleet = fleet_of([g], hedge_s=2.0)
    r = fleet.run(WORK)
    lost = int(r.attempts.sum()) - g.router.counts["observed"]
    assert lost > 50 and g.router.counts["cancelled"] > 50
    balanced(g, fleet.now)


def test_callers_that_give_up_leave_nothing_behind():
    g = gateway()
    fleet = fleet_of([g], timeout_s=1.5)
    fleet.at(5.0, lambda f, t: f.set("a", down="hang"))
    r = fleet.run(WORK)
    assert (r.error == "timeout").sum() > 50
    balanced(g, fleet.now)


def test_several_gateways_share_the_arrivals_and_not_their_counts():
    gateways = [gateway(3) for _ in range(3)]
    r = fleet_of(gateways).run(WORK)
    each = np.bincount(r.gateway, minlength=3)
    assert (
        each.min() > 0.25 * 800 and [g.router.counts["decided"] for g in gateways] == each.tolist()
    )
    assert len({id(g.engine) for g in gateways}) == len({id(g.router) for g in gateways}) == 3
    assert {g.router.policy.gateways for g in gateways} == {3}
    assert len({g.router.config.seed for g in gateways}) == 3  # they do not draw the same numbers


def test_the_same_gateway_may_run_twice_and_does_the_same():
    gateways = [gateway(2, forecaster="room") for _ in range(2)]
    first, second = (fleet_of(gateways).run(WORK) for _ in range(2))
    assert (
        first.end_s.tolist() == second.end_s.tolist()
        and first.place.tolist() == second.place.tolist()
    )


def test_nowhere_to_go_is_a_refusal_and_retries_start_anew():
    g = gateway()
    fleet = fleet_of([g], retries=2, backoff_s=1.0)
    for n in "abc":
        g.router.force(n, "open", 0.0, "maintenance")
    fleet.at(
        WORK.at_s[0] + 2.0, lambda f, t: [g.router.force(n, "closed", t, "over") for n in "abc"]
    )
    r = fleet.run(WORK.head(1))
    assert (
        r.ok[0]
        and r.attempts[0] == 1
        and r.born_s[0] + 3.0 < r.end_s[0]
        and g.router.counts["decided"] == 1
    )


def test_gauges_reach_the_engine_as_old_as_they_are():
    heard = []
    g = gateway(forecaster="room")
    fleet = fleet_of([g], staleness_s=4.0)
    forecaster = g.engine.forecaster
    hear = forecaster.gauges
    forecaster.gauges = lambda now, said: (heard.append((now, said)), hear(now, said))
    fleet.run(WORK)
    times = [t for t, _ in heard]
    assert np.allclose(np.diff(times), g.engine.config.tick_s)
    late = [now - at_s for now, said in heard for at_s, *_ in said.values()]
    assert len(late) > 20 and min(late) >= 4.0 - 1e-6 and forecaster.heard.bad == 0


def test_replicas_that_start_and_stop_are_handed_on():
    g = gateway()
    fleet = fleet_of([g])
    g.replicas((1.0, 0.5, 2.0))
    assert g.router.shares() == dict(a=1.0, b=0.5, c=2.0)
    r = fleet.run(WORK)
    share = np.bincount(r.first, minlength=3) / len(r)
    assert share[1] < 0.7 * share[0] < share[2]


def test_the_previous_default_still_runs_for_one_version_and_says_so():
    with pytest.warns(DeprecationWarning, match="previous"):
        g = gateway(policy="previous")
        r = fleet_of([g]).run(WORK)
    assert g.router.policy.name == "predicted_cost" and r.ok.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fleet_of([gateway()]).run(WORK.head(50))
