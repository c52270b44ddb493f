"""The simulated fleet: queueing theory, conservation whatever happens, determinism, flat memory,
stale gauges, rate limits, cancelled hedges.
"""

import gc
import tracemalloc
from dataclasses import replace
from math import factorial, inf
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.lab.fleet import (
    FirstToken,
    FixedChoice,
    Fleet,
    Record,
    ServiceCurve,
    SimBackend,
    Station,
    Tally,
)
from arcpoint_ce.lab.physics import Contexts, Engine, EngineStation, TalkStation
from arcpoint_ce.lab.workloads import Lengths, Tokens, Workload, _poisson_stream, poisson
from arcpoint_ce.routing.records import Backend

CURVE = ServiceCurve((1.0, 8.0, 16.0), (20.0, 25.0, 40.0), (50.0, 60.0, 90.0), 500.0)
SHORT = Tokens(Lengths(500.0, 0.5), Lengths(100.0, 0.5))


def requests(at_s, tokens_out, slo_s=10.0):
    n = len(at_s)
    return Workload(at_s, np.full(n, 500.0), tokens_out, np.full(n, slo_s), np.zeros(n, int))


class Ledger(FixedChoice):
    "Goes anywhere; every place that it gives must come back exactly once."

    def __init__(self, every_s=inf, refuse=0.0):
        self.every_s, self.refuse = every_s, refuse

    def start(self, backends, seed):
        self.n, self.random = len(backends), Random(seed).random
        self.given, self.back, self.ticks, self.errors = {}, {}, [], []

    def place(self, call):
        free = [i for i in range(self.n) if i not in call.tried]
        if not free or self.random() < self.refuse:
            return -1
        place = free[int(self.random() * len(free))]
        self.given[call.k, len(call.tried)] = place
        return place

    def send(self, call, now):
        return self.place(call)

    def again(self, call, now):
        return self.place(call)

    def returned(self, job, now):
        key = job.call.k, job.attempt
        assert (
            self.given[key] == job.place
            and key not in self.back
            and now >= job.start_s
            and not job.alive
        )
        self.back[key] = now

    def end(self, job, now, ok, error):
        self.returned(job, now)
        self.errors.append(error)
        assert ok == (error is None)

    def cancel(self, job, now):
        self.returned(job, now)
        self.errors.append("cancelled")

    def tick(self, now, gauges):
        self.ticks.append((now, gauges))


class Once(Record):
    "Notices whoever ends twice."

    def __init__(self):
        super().__init__()
        self.closed = set()

    def close(self, call, job, now, ok, error):
        assert call.k not in self.closed
        self.closed.add(call.k)
        super().close(call, job, now, ok, error)


# ---- theory


def mean_s(sim, gaps_s, tokens):
    tally = Fleet([sim], [FixedChoice()], timeout_s=1e7, gauge_s=1e7).run(
        requests(np.cumsum(gaps_s), tokens, inf), Tally()
    )
    return tally.latency_s / tally.n


def over_seeds(sim, load, law, n=60_000, seeds=5):
    rngs = [np.random.default_rng(s) for s in range(seeds)]
    return np.mean([mean_s(sim, rng.exponential(1 / load, n), law(rng, n)) for rng in rngs])


LAWS = {
    "constant": lambda rng, n: np.full(n, 100.0),
    "exponential": lambda rng, n: rng.exponential(100.0, n),
    "two kinds": lambda rng, n: np.where(
        rng.random(n) < 0.9, rng.exponential(50.0, n), rng.exponential(550.0, n)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("c, rho", [(1, 0.5), (4, 0.7), (16, 0.85)])
def test_waits_as_erlang_said(c, rho):
    a = c * rho
    top = a**c / factorial(c) / (1 - rho)
    want = 1 + top / (sum(a**k / factorial(k) for k in range(c)) + top) / (c - a)
    got = over_seeds(
        SimBackend(Backend("a"), ServiceCurve((float(c),), (10.0,)), slots=c),
        a,
        LAWS["exponential"],
    )
    assert abs(got / want - 1) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_processor_sharing_does_not_care_for_the_law_of_service(law):
    assert (
        abs(
            over_seeds(SimBackend(Backend("a"), ServiceCurve((1.0,), (10.0,))), 0.5, LAWS[law])
            / 2.0
            - 1
        )
        < 0.02
    )


def test_littles_law():
    class Watch(Ledger):
        def tick(self, now, gauges):
            self.ticks.append(gauges[0].running + gauges[0].waiting)

    gateway = Watch(every_s=0.1)
    r = Fleet(
        [SimBackend(Backend("a"), CURVE, slots=8)], [gateway], timeout_s=1e6, gauge_s=0.1
    ).run(poisson(3.5, 4000, 3, SHORT))
    assert (
        abs(np.mean(gateway.ticks) / (len(r) / r.end_s.max() * r.latency_s.mean()) - 1) < 0.02
        and np.mean(gateway.ticks) > 5
    )


# ---- conservation

PLACE = st.integers(0, 2)
HOOKS = st.one_of(
    st.tuples(
        st.just("set"),
        PLACE,
        st.fixed_dictionaries(
            {},
            optional=dict(
                speed=st.sampled_from((0.1, 1.0, 2.0)),
                others=st.sampled_from((0.0, 3.5, 40.0)),
                down=st.sampled_from((None, "refuse", "hang")),
                error_rate=st.sampled_from((0.0, 0.3, 1.0)),
                stuck_rate=st.sampled_from((0.0, 0.3)),
                delay_ms=st.sampled_from((0.0, 700.0, 9000.0)),
                error_ms=st.sampled_from((0.0, 5.0, 9000.0)),
                rpm=st.sampled_from((None, 0, 5, 60)),
                tpm=st.sampled_from((None, 2000)),
                slots=st.sampled_from((None, 1, 4)),
                queue=st.sampled_from((None, 0, 3)),
                gauge=st.sampled_from((None, "frozen")),
            ),
        ),
    ),
    st.tuples(st.just("kill"), PLACE),
    st.tuples(st.just("scale"), PLACE, st.integers(0, 3)),
    st.tuples(st.just("surge"), st.sampled_from((0.2, 1.0, 5.0))),
)


def stations_of(kind):
    "What makes the stations of a fleet: ideal, with conversations, or engines with little memory."
    contexts = Contexts(40.0, keep_s=5.0)

    def talk(sim, place):
        return TalkStation(sim, place, contexts)

    def engine(sim, place):
        small = Engine(
            kv_tok=2500.0,
            chunk_tok=None if place == 1 else 300.0,
            prefix_s=3.0,
            pace_cv=0.3,
            request_cv=0.2,
        )
        return EngineStation(sim, place, small, 1, contexts, 20.0)

    return dict(ideal=Station, talk=talk, engine=engine)[kind]


KINDS = ("ideal", "talk", "engine")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=70, deadline=None)
@given(
    hooks=st.lists(st.tuples(st.floats(0.0, 60.0), HOOKS), max_size=12),
    seed=st.integers(0, 99),
    retries=st.integers(0, 3),
    hedge_s=st.sampled_from((inf, 0.5, 4.0)),
    timeout_s=st.sampled_from((3.0, 20.0)),
    gateways=st.integers(1, 3),
    refuse=st.sampled_from((0.0, 0.3)),
    deadline_s=st.sampled_from((None, 0.01, 2.5, 8.0)),
)
def test_every_request_ends_once_and_every_place_comes_back(
    kind, hooks, seed, retries, hedge_s, timeout_s, gateways, refuse, deadline_s
):
    mates = [Ledger(5.0, refuse) for _ in range(gateways)]
    sims = [
        SimBackend(Backend(n, price_out=1.0), CURVE, slots=4, queue=5, start_s=7.0) for n in "ab"
    ] + [SimBackend(Backend("c"), CURVE, start_s=7.0)]
    fleet = Fleet(
        sims,
        mates,
        seed=seed,
        timeout_s=timeout_s,
        retries=retries,
        hedge_s=hedge_s,
        stations=stations_of(kind),
        first_token=FirstToken(2.0) if seed % 2 else None,
    )
    for t, (what, *args) in hooks:
        if what == "set":
            fleet.at(t, lambda f, now, a=args: f.set(a[0], **a[1]))
        else:
            fleet.at(t, lambda f, now, w=what, a=args: getattr(f, w)(*a))
    work = poisson(6.0, 300, seed, SHORT)
    if kind != "ideal":
        work = replace(work, session=np.arange(300) % 7 - 1, prefix=np.arange(300) % 3 - 1)
    r = fleet.run(
        replace(work, deadline_s=np.where(np.arange(300) % 3, deadline_s, inf))
        if deadline_s
        else work,
        Once(),
    )
    if deadline_s:
        assert (r.latency_s[np.arange(300) % 3 > 0] <= deadline_s + 1e-9).all() and not (
            r.error[::3] == "deadline"
        ).any()
    assert (
        len(r) == 300
        and r.k.tolist() == list(range(300))
        and fleet.callers.open == 0
        and not fleet.attempts.running
    )
    for m in mates:
        assert m.given.keys() == m.back.keys()
    assert sum(len(m.given) for m in mates) == r.attempts.sum() and all(
        s.n == 0 and not s.queue for s in fleet.stations
    )
    assert (
        (r.latency_s >= 0).all()
        and (r.attempts <= (1 + (hedge_s < inf)) + retries).all()
        and all(s.now_is for s in fleet.stations)
    )
    assert all((e is None) == ok for ok, e in zip(r.ok, r.error)) and (r.cost_usd[~r.ok] >= 0).all()
    for s in fleet.stations:
        assert not [1 for *_, job in s.heap if job.alive] and not s.jobs()
    if kind == "engine":
        for s in fleet.stations:
            assert (
                not s.put_back
                and not s.batch.prefill.queue
                and abs(s.batch.memory.still_tok) < 1e-3
                and s.batch.memory.growing == 0
            )


def troubled(work, seed=0, kind="ideal", **caller):
    gateways = [Ledger(1.0), Ledger(1.0)]
    fleet = Fleet(
        [SimBackend(Backend(n, price_out=1.0), CURVE, slots=6, queue=20) for n in "abc"],
        gateways,
        seed=seed,
        timeout_s=15.0,
        stations=stations_of(kind),
        **caller,
    )
    fleet.at(10.0, lambda f, t: f.set("a", error_rate=0.3, stuck_rate=0.1))
    fleet.at(20.0, lambda f, t: f.kill("b"))
    fleet.at(25.0, lambda f, t: f.surge(3.0))
    fleet.at(30.0, lambda f, t: f.set("c", delay_ms=300.0, speed=0.4))
    fleet.at(40.0, lambda f, t: f.surge(0.5))
    r = fleet.run(work)
    return [
        getattr(r, k).tolist()
        for k in ("end_s", "ok", "place", "attempts", "cost_usd", "error", "gateway")
    ], [g.ticks for g in gateways]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("caller", [{}, dict(retries=2, hedge_s=3.0)])
def test_the_same_seed_gives_the_same_run_and_chunks_change_nothing(caller, kind):
    caller = caller | dict(kind=kind)
    work = replace(
        poisson(6.0, 600, 1, SHORT), session=np.arange(600) % 7 - 1, prefix=np.arange(600) % 3 - 1
    )
    once = troubled(work, **caller)
    assert (
        once
        == troubled(work, **caller)
        == troubled(work.chunks(7), **caller)
        == troubled(work.chunks(599), **caller)
    )
    assert once == troubled((c for w in work.chunks(50) for c in (w[:0], w)), **caller), (
        "empty chunks"
    )
    assert once != troubled(work, seed=1, **caller)


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_requests():
    def peak(n):
        gc.collect()
        tracemalloc.start()
        try:
            tally = Fleet(
                [SimBackend(Backend("a"), CURVE, replicas=8)],
                [FixedChoice()],
                timeout_s=30.0,
                hedge_s=25.0,
            ).run(_poisson_stream(20.0, n, 1, chunk=2048, tokens=SHORT), Tally())
            assert tally.n == n
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small = peak(12_000)
    assert peak(48_000) < 1.1 * small + 100_000


def test_the_collector_is_as_before_even_after_an_error():
    class Broken(FixedChoice):
        def send(self, call, now):
            raise RuntimeError("broken")

    held = gc.get_threshold()
    gc.set_threshold(701, 11, 12)
    before = gc.get_threshold(), gc.isenabled(), gc.get_freeze_count()
    with pytest.raises(RuntimeError, match="broken"):
        Fleet([SimBackend(Backend("a"), CURVE)], [Broken()]).run(poisson(1.0, 5, 1))
    after = gc.get_threshold(), gc.isenabled(), gc.get_freeze_count()
    gc.set_threshold(*held)
    assert after == before


# ---- what gateways see


@pytest.mark.parametrize("staleness_s", [0.0, 0.4, 7.3])
def test_gauges_are_the_newest_that_are_old_enough(staleness_s):
    g = Ledger(every_s=0.7)
    Fleet(
        [SimBackend(Backend("a"), CURVE), SimBackend(Backend("b"), CURVE, observable=False)],
        [g],
        staleness_s=staleness_s,
        gauge_s=1.0,
    ).run(poisson(2.0, 200, 1, SHORT))
    assert len(g.ticks) > 100
    for now, (seen, hidden) in g.ticks:
        assert hidden is None
        if now < staleness_s:
            assert seen is None
        else:
            assert 0 <= now - staleness_s - seen.at_s + 1e-6 < 1.01


def test_a_frozen_gauge_lags_as_usual_and_then_stands_still_and_a_lying_one_lies():
    g = Ledger(every_s=1.0)
    fleet = Fleet([SimBackend(Backend("a"), CURVE)], [g], staleness_s=5.0)
    fleet.at(20.5, lambda f, t: f.set("a", gauge="frozen"))
    fleet.at(
        40.5, lambda f, t: f.set("a", gauge=lambda x: x._replace(running=-1.0, at_s=x.at_s + 99.0))
    )
    fleet.run(poisson(2.0, 150, 1, SHORT))
    seen = {int(now): x for now, (x,) in g.ticks}
    assert [seen[t].at_s for t in (20, 25, 30, 45)] == [15.0, 20.0, 20.0, 20.0] and (
        seen[50].running,
        seen[50].at_s,
    ) == (-1.0, 144.0)


def test_rate_limits_count_accepted_attempts_by_the_minute_of_the_clock():
    at = np.r_[np.arange(0.0, 150.0, 0.5)]
    fleet = Fleet([SimBackend(Backend("a", rpm=30), CURVE)], [FixedChoice()])
    r = fleet.run(requests(at, np.full(len(at), 5.0)))
    assert [int(r.ok[(at >= 60 * m) & (at < 60 * m + 60)].sum()) for m in range(3)] == [
        30,
        30,
        30,
    ] and set(r.error[~r.ok]) == {"rate_limited"}
    assert r.ok[:30].all() and np.allclose(r.latency_s[~r.ok], 0.005)
    # 505 tokens each: ten a minute
    fleet = Fleet([SimBackend(Backend("a", tpm=5050), CURVE)], [FixedChoice()])
    assert int(fleet.run(requests(at[:120], np.full(120, 5.0))).ok.sum()) == 10
    fleet = Fleet([SimBackend(Backend("a", rpm=30), CURVE)], [FixedChoice()])
    fleet.set(0, rpm=0)
    assert not fleet.run(requests(at[:120], np.full(120, 5.0))).ok.any()


# ---- single attempts, by hand


class Plan(Ledger):
    "Places in the order given."

    def __init__(self, *places):
        super().__init__()
        self.places = list(places)

    def place(self, call):
        self.given[call.k, len(call.tried)] = p = self.places.pop(0)
        return p


def one(gateway, hooks=(), **caller):
    fleet = Fleet(
        [
            SimBackend(Backend(n, price_out=10_000.0), ServiceCurve((1.0,), (100.0,)), slots=1)
            for n in "ab"
        ],
        [gateway],
        **({"timeout_s": 30.0} | caller),
    )
    for t, do in hooks:
        fleet.at(t, do)
    return fleet, fleet.run(requests([0.0], [100.0]))  # ten seconds of work


def test_the_loser_of_a_hedge_is_cancelled_and_paid_for():
    g = Plan(0, 1)
    fleet, r = one(g, [(0.0, lambda f, t: f.set("a", speed=0.5))], hedge_s=3.0)
    assert (r.place[0], r.end_s[0], r.attempts[0], r.cost_usd[0]) == (
        1,
        13.0,
        2,
        2.0,
    ) and g.errors == [None, "cancelled"]
    assert fleet.stations[0].n == 0 and fleet.agenda.departures == [inf, inf]


def test_a_hedge_that_never_got_a_seat_costs_nothing():
    sims = [
        SimBackend(Backend(n, price_out=10_000.0), ServiceCurve((1.0,), (100.0,)), slots=1)
        for n in "ab"
    ]
    g = Plan(1, 0, -1, 1)  # the first fills b; the second's hedge queues there in vain
    r = Fleet(sims, [g], hedge_s=6.0).run(requests([0.0, 4.0], [200.0, 100.0]))
    assert (
        sorted(g.errors, key=str) == [None, None, "cancelled"]
        and r.cost_usd.tolist() == [2.0, 1.0]
        and r.end_s.tolist() == [20.0, 14.0]
    )


def test_a_call_survives_the_death_of_one_of_its_two_attempts():
    g = Plan(0, 1)
    _, r = one(g, [(5.0, lambda f, t: f.kill("a"))], hedge_s=3.0)
    assert r.ok[0] and r.end_s[0] == 13.0 and g.errors == ["lost", None] and r.attempts[0] == 2


def test_a_time_out_while_the_answer_is_on_its_way_ends_the_attempt_once():
    g = Plan(0)
    _, r = one(g, [(0.0, lambda f, t: f.set("a", delay_ms=25_000.0))])
    assert (r.error[0], r.end_s[0]) == ("timeout", 30.0) and g.errors == ["timeout"]
    g = Plan(0)
    _, r = one(g, [(0.0, lambda f, t: f.set("a", delay_ms=15_000.0))])
    assert (r.ok[0], r.end_s[0], r.cost_usd[0]) == (True, 25.0, 1.0)


def test_a_kill_does_not_reach_an_answer_that_has_left():
    _, r = one(
        Plan(0), [(0.0, lambda f, t: f.set("a", delay_ms=5000.0)), (12.0, lambda f, t: f.kill("a"))]
    )
    assert r.ok[0] and r.end_s[0] == 15.0


def test_no_replica_no_work_and_what_waited_goes_on_when_one_is_ready():
    "The batch stands still and the queue waits; a new request waits too."
    sim = SimBackend(Backend("a"), ServiceCurve((1.0,), (100.0,)), start_s=50.0)
    fleet = Fleet([sim], [FixedChoice()], timeout_s=500.0)
    fleet.at(5.0, lambda f, t: f.scale("a", 0))
    fleet.at(20.0, lambda f, t: f.scale("a", 1))
    seen = []
    fleet.at(15.0, lambda f, t: seen.append((f.stations[0].n, len(f.stations[0].queue))))
    r = fleet.run(requests([0.0, 10.0], [100.0, 100.0]))
    # 5 s at once; from 70 on both at half speed
    assert seen == [(1, 1)] and r.end_s.tolist() == [pytest.approx(80.0), pytest.approx(85.0)]


def test_scaling_down_takes_back_what_is_still_starting():
    fleet = Fleet([SimBackend(Backend("a"), CURVE, replicas=2, start_s=100.0)], [FixedChoice()])
    seen = {}
    for t, n in ((10.0, 4), (50.0, 1), (60.0, 3)):
        fleet.at(t, lambda f, now, n=n: f.scale("a", n))
    for t in (20.0, 55.0, 120.0, 159.0, 161.0):
        fleet.at(t, lambda f, now: seen.update({now: f.stations[0].replicas}))
    fleet.run(requests(np.arange(0.0, 300.0, 10.0), np.full(30, 5.0)))
    assert seen == {20.0: 2, 55.0: 1, 120.0: 1, 159.0: 1, 161.0: 3}


def test_retries_double_their_pause_and_are_counted_though_nothing_was_sent():
    class Never(FixedChoice):
        def __init__(self):
            self.asked = []

        def send(self, call, now):
            self.asked.append(now)
            return -1

        def again(self, call, now):
            self.asked.append(now)
            return -1

    g = Never()
    r = Fleet([SimBackend(Backend("a"), CURVE)], [g], retries=3, backoff_s=1.0).run(
        requests([0.0], [5.0])
    )
    assert g.asked == [0.0, 1.0, 3.0, 7.0] and (r.error[0], r.attempts[0], r.place[0]) == (
        "refused",
        0,
        -1,
    )
    g = Ledger()
    fleet = Fleet(
        [SimBackend(Backend(n), CURVE) for n in "abcdefgh"], [g], retries=3, backoff_s=1.0
    )
    for n in "abcdefgh":
        fleet.set(n, down="refuse")
    r = fleet.run(requests([0.0], [5.0]))
    assert r.attempts[0] == 4 and r.end_s[0] == pytest.approx(7.02)


def test_a_deadline_ends_a_call_and_frees_its_seat():
    g = Ledger()
    fleet = Fleet([SimBackend(Backend("a", price_out=1e6), CURVE, slots=1)], [g], retries=2)
    work = replace(requests([0.0, 1.0], [200.0, 10.0]), deadline_s=[2.0, inf])
    r = fleet.run(work)
    assert (
        r.error.tolist() == ["deadline", None]
        and r.end_s[0] == 2.0 < r.end_s[1] < 3.0
        and g.errors == ["cancelled", None]
    )
    # it had a seat: what was begun is paid for
    assert r.violated.tolist() == [True, False] and r.cost_usd[0] > 0
    fleet = Fleet([SimBackend(Backend("a"), CURVE)], [g := Ledger()], retries=3, backoff_s=4.0)
    fleet.set("a", down="refuse")
    r = fleet.run(replace(work, deadline_s=[2.0, 2.0]))  # both while waiting for the next try
    assert (
        r.error.tolist() == ["deadline"] * 2
        and r.end_s.tolist() == [2.0, 3.0]
        and r.attempts.tolist() == [1, 1]
    )


def test_a_surge_bends_time_across_chunks():
    at = np.arange(1.0, 41.0)

    def born(work):
        fleet = Fleet([SimBackend(Backend("a"), CURVE)], [FixedChoice()])
        fleet.at(10.5, lambda f, t: f.surge(2.0))
        fleet.at(20.25, lambda f, t: f.surge(0.5))
        return fleet.run(work).born_s

    whole = born(requests(at, np.full(40, 5.0)))
    assert np.array_equal(whole, born(requests(at, np.full(40, 5.0)).chunks(1)))
    assert (
        whole[:10].tolist() == at[:10].tolist()
        and whole[10] == 10.75
        and np.allclose(np.diff(whole[10:29]), 0.5)
        and whole[29] == 20.25
        and whole[30] == 22.25
        and np.allclose(np.diff(whole[30:]), 2.0)
    )


def test_until_stops_the_clock_and_a_second_run_goes_on():
    g = Ledger(every_s=1.0)
    fleet = Fleet([SimBackend(Backend("a"), CURVE)], [g], timeout_s=50.0)
    first = fleet.run(requests([1.0, 2.0, 30.0], [5.0, 2000.0, 5.0]), until_s=10.0)
    assert fleet.now == 10.0 and len(first) == 1 and fleet.callers.open == 1
    second = fleet.run(requests([12.0], [5.0]))
    assert (
        second.k.tolist() == [1, 2]
        and second.born_s.tolist() == [2.0, 12.0]
        and len({t for t, _ in g.ticks}) == len(g.ticks) > 30
    )
    with pytest.raises(ValueError, match="before"):
        fleet.run(requests([3.0], [5.0]))


def test_what_makes_no_fleet_is_refused():
    sim = SimBackend(Backend("a"), CURVE)
    for bad, kw in (
        (([], [FixedChoice()]), {}),
        (([sim], []), {}),
        (([sim, sim], [FixedChoice()]), {}),
        (([sim], [FixedChoice()]), dict(retries=-1)),
    ):
        with pytest.raises(ValueError):
            Fleet(*bad, **kw)
    fleet = Fleet([sim], [FixedChoice()])
    for call in (lambda: fleet.set("b", speed=1.0), lambda: fleet.kill(7)):
        with pytest.raises(KeyError):
            call()
    for call in (
        lambda: fleet.set("a", speed=0.0),
        lambda: fleet.set("a", pace=1.0),
        lambda: fleet.surge(0.0),
        lambda: fleet.scale("a", -1),
    ):
        with pytest.raises(ValueError):
            call()
