"""Scaling: the quantile covers, advice is sane whatever it is told, the bill is what the fleet run
costs, and gateways are told.
"""

from math import ceil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.forecast.replicas import (
    Advisor,
    Cron,
    Outlook,
    Reactive,
    Scaling,
    Site,
    _room_rps,
    chance_above,
    learn_demand,
)
from arcpoint_ce.lab import contest
from arcpoint_ce.lab.rivals import make_peer
from arcpoint_ce.lab.scalers import (
    ADVISERS,
    DEFAULT_SCALER,
    SCALER_SETTINGS,
    Scaler,
    _bill,
    _counts_before,
    _fill_for,
    _make_adviser,
    _ScalerTuning,
    cold_summary,
    open_best,
    scaler_for,
)
from arcpoint_ce.lab.worlds import Setting, World

PERIOD = 60


def arrivals(cycles, seed, calm=40.0, peak=120.0, cv=1.2, shift=0):
    rng, phase = np.random.default_rng(seed), (np.arange(cycles * PERIOD) + shift) % PERIOD
    mean = np.where(phase < 0.3 * PERIOD, peak, calm)
    return np.maximum(rng.normal(mean, cv * np.sqrt(mean)), 0).round()


@pytest.fixture(scope="module")
def model():
    return learn_demand(arrivals(6, 1), 10.0, 180.0)


@pytest.fixture(scope="module")
def world():
    return World(Setting("cold_capacity", seed=1, n=1200, load=0.8))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("quantile", (0.5, 0.9))
def test_the_quantile_covers_cycles_that_nobody_has_seen(seed, quantile):
    outlook, later = (
        Outlook(learn_demand(arrivals(6, seed), 10.0, 180.0), quantile),
        arrivals(25, 90 + seed),
    )
    said = []
    for k, n in enumerate(later):
        outlook.push(6 * PERIOD + k, n)
        said.append(outlook.high(outlook.path())[-1])
    assert abs((later[18:] <= np.array(said)[:-18]).mean() - quantile) < 0.06


def test_the_quantile_follows_when_the_world_becomes_rougher(model):
    outlook, later, said = Outlook(model), arrivals(14, 5, cv=3.0), []
    for k, n in enumerate(later):
        outlook.push(6 * PERIOD + k, n)
        said.append(outlook.high(outlook.path())[-1])
    hit = later[18:] <= np.array(said)[:-18]
    assert hit[:120].mean() < hit[-360:].mean() and hit[-360:].mean() > 0.84


@pytest.mark.parametrize(
    "bad",
    [
        dict(counts=[1.0, float("nan")] * 60),
        dict(counts=[-1.0] * 200),
        dict(counts=[1.0] * 30),
        dict(step_s=0.0),
        dict(ahead_s=float("inf")),
    ],
)
def test_bad_input_is_named(bad):
    with pytest.raises(ValueError, match="learn_demand"):
        learn_demand(**dict(counts=arrivals(6, 0), step_s=10.0, ahead_s=180.0) | bad)


def test_silence_and_an_empty_past_are_survived(model):
    a = Advisor(learn_demand(np.zeros(200), 10.0, 60.0))
    sites = (Site("a", 2.0),)
    assert a.advise(5.0, sites, dict(a=1)).replicas == dict(a=1)
    b = Advisor(model)
    for t in range(3600, 6000, 10):
        b.arrived(t + 5.0, 0)
    assert b.advise(6000.0, sites, dict(a=3)).p90_rps >= 0


def test_requests_one_by_one_count_like_sums(model):
    one, sums = Advisor(model), Advisor(model)
    for t in range(3600, 3900, 10):
        for k in range(7):
            one.arrived(t + k)
        sums.arrived(t + 5.0, 7)
    sites = (Site("a", 2.0),)
    assert one.advise(3900.0, sites, dict(a=2)) == sums.advise(3900.0, sites, dict(a=2))


class Says(Scaling):
    def __init__(self, order, keep, **kw):
        super().__init__(**kw)
        self.said = order, keep

    def arrived(self, now, n=1.0):
        pass

    def needs(self, now):
        return self.said[0], *self.said, "said"


fleet_of = st.lists(
    st.tuples(
        st.floats(0.1, 20), st.floats(0, 5), st.floats(0, 10), st.integers(1, 4), st.integers(0, 2)
    ),
    min_size=1,
    max_size=6,
)


@given(fleet_of, st.floats(0, 100), st.floats(0, 100), st.floats(0.2, 1.5))
@settings(max_examples=150, deadline=None)
def test_advice_meets_the_need_with_no_replica_too_many(rows, order, keep, fill):
    sites = tuple(Site(f"s{i}", r, u, p, 1, 6) for i, (r, u, p, _, _) in enumerate(rows))
    ready = {s.name: n for s, (*_, n, _) in zip(sites, rows)}
    starting = {s.name: k for s, (*_, k) in zip(sites, rows) if k}
    have = {n: k + starting.get(n, 0) for n, k in ready.items()}
    out = Says(order, keep, fill=fill).advise(0.0, sites, ready, starting).replicas
    assert all(s.least <= out[s.name] <= max(s.most, have[s.name]) for s in sites)
    if _room_rps(sites, have, fill) < order:
        assert all(out[n] >= have[n] for n in out)
        assert _room_rps(sites, out, fill) >= order or all(out[s.name] >= s.most for s in sites)
        grown = [s for s in sites if out[s.name] > have[s.name]]
        cheaper = [
            s for s in sites if grown and s.price / s.rps < max(g.price / g.rps for g in grown)
        ]
        assert all(out[s.name] >= s.most for s in cheaper)
    else:
        assert all(out[n] <= have[n] for n in out) and all(out[n] == have[n] for n in starting)
        left = {n: out[n] - starting.get(n, 0) for n in out}
        assert left == ready or _room_rps(sites, left, fill) >= max(order, keep)


def test_a_release_waits_until_the_need_has_been_low_for_the_dwell():
    a, sites = Says(0.0, 9.0, fill=1.0, dwell_s=60.0), (Site("a", 5.0),)
    assert a.advise(0.0, sites, dict(a=2)).replicas == dict(a=2)
    a.said = 0.0, 1.0
    assert [a.advise(t, sites, dict(a=2)).replicas["a"] for t in (30.0, 60.0, 61.0)] == [2, 2, 1]


def test_reactive_orders_when_the_load_is_there_predictive_before(model):
    # calm, then a surge after 30 steps
    sites, new = (Site("a", 2.0, most=20),), arrivals(1, 3, shift=30)
    first = {}
    for a in (Advisor(model), Reactive()):
        if isinstance(a, Advisor):
            shifted = learn_demand(arrivals(6, 1, shift=30), 10.0, 180.0)
            a = Advisor(shifted)
        ready = dict(a=4)
        for k, n in enumerate(new):
            t = 3600 + 10.0 * k
            a.arrived(t + 5.0, n)
            if a.advise(t + 10.0, sites, ready).replicas["a"] > 4:
                first[type(a)] = k
                break
    assert abs(first[Advisor] - (30 - 18)) <= 2 and 30 <= first[Reactive] <= 33


def test_a_replica_is_paid_for_from_its_order_on_and_ready_when_it_has_started():
    scaler = Scaler(Says(0.0, 0.0, fill=1.0), (Site("a", 2.0),), [1], [180.0])
    replicas, bill = scaler.replicas, scaler.bill
    scaler.step(10.0, 0.0)
    assert bill.replica_s == 10.0
    scaler.adviser.said = 4.0, 4.0
    scaler.step(20.0, 0.0)
    assert replicas.ready == [1] and replicas.orders == [(200.0, 0)] and bill.replica_s == 30.0
    for t in range(30, 200, 10):
        scaler.step(float(t), 0.0)
    assert replicas.ready == [1]
    scaler.step(200.0, 0.0)
    assert replicas.ready == [2] and not replicas.orders
    assert bill.replica_s == 30.0 + 18 * 20.0


@pytest.mark.parametrize("how", ADVISERS)
def test_the_fleet_run_costs_what_the_replay_says_and_stations_follow(world, how):
    fleet = world.fleet([make_peer("adaptive_least")])
    scaler = scaler_for(world, how).install(fleet)
    assert [s.replicas for s in fleet.stations] == scaler.replicas.ready
    record = fleet.run(world.workload)
    assert len(record) == len(world.workload)
    assert [s.replicas for s in fleet.stations] == scaler.replicas.ready
    assert scaler.row() == pytest.approx(_bill(world, how))


def test_orders_that_overlap_do_not_undo_each_other(world):
    fleet = world.fleet([make_peer("adaptive_least")])
    scaler = scaler_for(world, "reactive").install(fleet)
    replicas = scaler.replicas
    replicas.ready, replicas.orders = [2] * len(replicas.ready), []
    scaler.apply(fleet)
    replicas.orders = [(fleet.now + 3.0, 0), (fleet.now + 5.0, 0)]
    scaler.wait_for(fleet, replicas.orders)
    fleet.at(fleet.now + 6.0, lambda f, now: seen.append(f.stations[0].replicas))
    seen = []
    fleet.run(world.workload[:200])
    assert seen == [4]


def test_gateways_are_told_by_their_own_method():
    world, seen = World(Setting("cold_capacity", seed=1, n=300, load=0.8)), []
    gateway = make_peer("p2c")
    gateway.replicas = seen.append
    scaler_for(world, "predictive").install(world.fleet([gateway]))
    assert seen and all(x > 0 for x in seen[0]) and len(seen[0]) == len(world.sims)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["predictive", "cron", "trend", "reactive"])
def test_every_contender_gets_the_same_scaler(how):
    setting = dict(seed=1, n=300, load=0.8)
    plans = {}
    for name in contest.CONTENDERS:
        scaler = contest._scaled(World(Setting("cold_capacity", **setting)), name, how)
        assert type(scaler.adviser) is type(
            _make_adviser(how, World(Setting("cold_capacity", **setting)), 10)
        )
        at = [(t, a.replicas) for t, a, _ in scaler.log]
        replicas = scaler.replicas
        plans[name] = (replicas.ready, replicas.orders, scaler.adviser.fill, at)
    assert len(plans) > 15 and all(p == plans["ours"] for p in plans.values())


def test_rivals_get_the_predictive_scaler_unless_asked_otherwise(world):
    assert DEFAULT_SCALER == "predictive"
    for name in ("ours", "ours_none", "adaptive_least_sharp", "clairvoyant_1", "p2c"):
        adviser = contest._scaled(world, name).adviser
        assert isinstance(adviser, Advisor) and adviser.outlook.model.demand.season.profiles
        assert adviser.fill == SCALER_SETTINGS["predictive"]["fill"]
    with pytest.raises(ValueError, match="unknown contender"):
        contest._scaled(world, "nobody")


def test_a_schedule_follows_the_past_and_nothing_else():
    counts = np.r_[np.full(20, 100.0), np.full(40, 10.0)]
    cron = Cron(np.tile(counts, 3), 60, 10.0, 180.0, index=5, quantile=0.5, fill=1.0)
    cron.arrived(0.0, 1e6)
    shifted = np.roll(counts, 5) / 10
    for k in range(0, 130, 7):
        then, order, keep, _ = cron.needs(10.0 * k)
        assert then == order == shifted[(k + 18) % 60]
        assert keep == max(shifted[(k + j) % 60] for j in range(19))
    with pytest.raises(ValueError, match="two cycles"):
        Cron(counts, 60, 10.0, 180.0)
    with pytest.raises(ValueError, match="quantile"):
        Cron(np.tile(counts, 3), 60, 10.0, 180.0, quantile=1.5)


@pytest.mark.slow
def test_chances_fall_with_the_room_and_keep_their_word(model):
    outlook, later = Outlook(model), arrivals(25, 95)
    stated, came = [], []
    for k, n in enumerate(later):
        outlook.push(6 * PERIOD + k, n)
        chances = [chance_above(outlook, r) for r in (1.0, 4.0, 8.0, 12.0, 16.0)]
        assert chances == sorted(chances, reverse=True)
        stated.append(chance_above(outlook, 11.5))
    came = later[18:] / 10 > 11.5
    assert abs(np.mean(stated[:-18]) - came.mean()) < 0.05


@pytest.mark.parametrize("optimum", [0.01, 0.3, 3.0, 7.0, 200.0])
def test_a_grid_grows_until_its_best_value_is_no_edge(optimum):
    def cost(x):
        return abs(np.log(x / optimum))

    best, tried = open_best(cost, (1.0, 2.0, 4.0), lambda x: x / 2, lambda x: 2 * x)
    assert abs(np.log2(best / optimum)) <= 1 and min(tried) < best < max(tried)


def test_a_grid_stops_where_nothing_keeps_the_limit():
    best, tried = open_best(lambda x: np.inf, (1.0, 2.0), lambda x: x / 2, lambda x: 2 * x)
    assert len(tried) == 2


@pytest.mark.parametrize("knee", [0.1, 0.4, 0.9, 3.0])
def test_the_fill_is_the_highest_that_keeps_the_limit(knee):
    def missed(fill):
        return 0.001 if fill <= knee else 0.1

    fill = _fill_for(missed, 0.002, halvings=9)
    assert missed(fill) <= 0.002 < missed(1.02 * fill)


def test_tuning_takes_the_cheapest_setting_at_equal_misses(world, monkeypatch):
    from arcpoint_ce.lab import scalers as scaling

    def run(world, how, router, fill, dwell_s):
        return dict(missed=0 if fill <= 1 / (1 + abs(dwell_s - 30) / 100) else 1200)

    def paid(world, how, fill, dwell_s):
        return dict(replicas=1 / fill)

    monkeypatch.setattr(scaling, "_scaled_run", run)
    monkeypatch.setattr(scaling, "_bill", paid)
    best = _ScalerTuning([world], "reactive", 0.002).best()
    assert best["dwell_s"] == 30.0 and 0.9 < best["fill"] <= 1.0


def test_bills_are_compared_at_equal_misses():
    rows = []
    for scaler, hours in (("reactive", 20.0), ("trend", 16.0), ("predictive", 12.0)):
        for factor, missed in ((0.9, 2), (1.0, 20), (1.1, 200)):
            paid = dict(replica_s=3600 * hours / factor, missed=missed, requests=10_000)
            rows.append(dict(router="r", scaler=scaler, factor=factor, **paid))
    out = cold_summary(pd.DataFrame(rows), most=0.002)
    assert out.missed.tolist() == [20, 20, 20]
    assert out.over_waiting.round(3).tolist() == [1.25, 1.0, 0.75]


def test_the_past_does_not_depend_on_what_is_judged():
    a, b = (
        _counts_before(World(Setting("cold_capacity", seed=2, n=n, load=0.8)), 10.0)
        for n in (500, 900)
    )
    assert (a == b).all() and len(a) == ceil(3600 / 10)


def test_unknown_advisers_are_named(world):
    with pytest.raises(ValueError, match="predictive"):
        _make_adviser("psychic", world, 10)
    with pytest.raises(ValueError, match="Site"):
        Site("a", 0.0)
    with pytest.raises(ValueError, match="fill"):
        Reactive(fill=0.0)
