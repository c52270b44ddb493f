"""Every peer keeps the lab's contract and does what was published of it.

Its own rules are shown in the notebooks; here they meet a fleet.
"""

from collections import Counter
from math import exp, inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.lab.contest import contenders
from arcpoint_ce.lab.fleet import Call, Fleet, Gauge, Job, ServiceCurve, SimBackend
from arcpoint_ce.lab.rivals import FROZEN, GRIDS, PEERS, RANGES, UNTUNED, make_peer
from arcpoint_ce.lab.scalers import _tell
from arcpoint_ce.lab.workloads import poisson
from arcpoint_ce.lab.worlds import Setting, World
from arcpoint_ce.routing.records import Backend

NEEDS = {
    "best_fixed": dict(weights={"b0": 1.0, "b1": 2.0}),
    "clairvoyant": dict(oracle=lambda now: FREE),
}
FREE = (4.0, 8.0, 0.0, 2.0, 6.0)
REFUSES = {
    "resilience4j",
    "resilience4j_tuned",
    "litellm",
    "litellm_as_shipped",
    "envoy",
    "best_fixed",
}  # documented: may answer -1 though places are left
ERRORS = (None, "timeout", "refused", "error", "rate_limited", "queue_full", "lost")
SETTINGS = [(n, p) for n in PEERS for p in GRIDS.get(n, [{}])[::4]] + [
    ("clairvoyant", dict(how=h)) for h in ("draw2", "draw3", "weighted", "cheapest")
]


def fleet_of(n):
    return tuple(Backend(f"b{i}", capacity=4.0 + 4 * (i % 3), price_out=1.0 + i) for i in range(n))


def started(name, n=5, seed=0, capacity=None, **params):
    peer = make_peer(name, **{**NEEDS.get(name, {}), **params})
    peer.start(
        tuple(Backend(f"b{i}", capacity=c) for i, c in enumerate(capacity))
        if capacity
        else fleet_of(n),
        seed,
    )
    return peer


def a_call(k=0, now=0.0, tokens_out=100.0, slo_s=5.0, tokens_in=50.0):
    return Call(k, tokens_in, tokens_out, "standard", slo_s, now, 0)


def attempt(peer, now, call=None):
    "One attempt sent by the rule; None where it refuses."
    call = call or a_call(now=now)
    place = peer.again(call, now) if call.tried else peer.send(call, now)
    if place < 0:
        return None
    call.tried.append(place)
    return Job(call, len(call.tried) - 1, place, now)


def serve(peer, n, now=0.0, gap=0.0, took=lambda p: 0.5, error=lambda p: None):
    "n requests one after the other, each ended before the next; where they went."
    seen = Counter()
    for _ in range(n):
        job = attempt(peer, now)
        if job is None:
            seen[-1] += 1
        else:
            seen[job.place] += 1
            peer.end(job, now + took(job.place), error(job.place) is None, error(job.place))
        now += gap
    return seen


def held(peer, n, now=0.0):
    "n requests that stay in flight; where they went."
    return Counter(peer.send(a_call(k, now), now) for k in range(n))


# ---- the contract, over every peer


class Walk:
    "A random life of one gateway, checked at each step."

    def __init__(self, name, params, seed, n):
        self.name, self.n = name, n
        self.peer, self.rng = started(name, n, seed, **params), Random(seed)
        self.now, self.live, self.chosen = 0.0, [], []

    def step(self, what, error):
        self.now += self.rng.random() * 3
        if what == "tick":
            self.tick()
        elif what == "send" or not self.live:
            self.send()
        elif what == "again":
            self.again()
        else:
            self.end(what, error)
        assert all(type(p) is int and -1 <= p < self.n for p in self.chosen[-1:])
        assert self.peer.own == [sum(j.place == p for j in self.live) for p in range(self.n)]

    def gauge(self, p):
        if not p % 2:
            return None
        return Gauge(self.now - 1, 20 * self.rng.random(), 2, 10 + 30 * self.rng.random())

    def tick(self):
        self.peer.tick(self.now, tuple(self.gauge(p) for p in range(self.n)))
        if hasattr(self.peer, "progress"):
            for job in self.live:
                self.peer.progress(job, int(15 * (self.now - job.start_s)), self.now)

    def took(self, job):
        self.chosen.append(job.place if job else -1)
        if job:
            self.live.append(job)

    def send(self):
        call = a_call(len(self.chosen), self.now, 1.0 + 200 * self.rng.random())
        job = attempt(self.peer, self.now, call)
        self.took(job)
        assert job or self.name in REFUSES, f"{self.name} refused"

    def again(self):
        call = self.live[self.rng.randrange(len(self.live))].call
        before = call.tried[:]
        job = attempt(self.peer, self.now, call)
        self.took(job)
        if job:
            assert job.place not in before
        else:
            nowhere = len(before) == self.n or self.name in REFUSES
            assert nowhere, f"{self.name} found nowhere to go besides {before}"

    def end(self, what, error):
        job = self.live.pop(self.rng.randrange(len(self.live)))
        if what == "cancel":
            self.peer.cancel(job, self.now)
        else:
            self.peer.end(job, self.now, error is None, error)

    def over(self):
        "Everything has ended: nothing is left in the books."
        peer, n = self.peer, self.n
        for job in self.live:
            peer.end(job, self.now + 1.0, True, None)
        assert peer.own == [0] * n
        if hasattr(peer, "left"):
            assert peer.left.load == pytest.approx([0.0] * n, abs=1e-9) and not peer.left.left
        if hasattr(peer, "prompts"):
            assert peer.prompts == [0.0] * n and not peer.begun


def walk(name, params, steps, seed, n=5):
    "A random life of one gateway; the places that it chose."
    life = Walk(name, params, seed, n)
    for what, error in steps:
        life.step(what, error)
    life.over()
    return life.chosen


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("send", "send", "send", "again", "end", "end", "cancel", "tick")),
        st.sampled_from(ERRORS),
    ),
    min_size=1,
    max_size=120,
)


@pytest.mark.parametrize("name, params", SETTINGS, ids=str)
def test_contract(name, params):
    @settings(max_examples=12, deadline=None)
    @given(STEPS, st.integers(0, 1000))
    def check(steps, seed):
        if name == "best_fixed" and params:
            return
        # the seed decides everything
        assert walk(name, params, steps, seed) == walk(name, params, steps, seed)

    check()


@pytest.mark.parametrize("name", PEERS)
def test_a_long_life(name):
    rng = Random(5)
    steps = [
        (
            rng.choice(("send", "send", "end", "end", "again", "tick", "cancel")),
            rng.choice((None, None, None, None, *ERRORS)),
        )
        for _ in range(3000)
    ]
    assert len(set(walk(name, {}, steps, 1)) - {-1}) >= 2


@pytest.mark.parametrize(
    "name",
    sorted(
        set(PEERS)
        - {
            "round_robin",
            "adaptive_least",
            "adaptive_least_sharp",
            "adaptive_least_sharp_paced",
            "adaptive_gauges",
            "c3",
            "clairvoyant",
            "stream_least",
            "lmetric",
            "least_work_left",
        }
    ),
)
def test_the_seed_matters(name):
    steps = [("send", None)] * 60
    assert len({tuple(walk(name, {}, steps, seed)) for seed in range(6)}) > 1


@pytest.mark.parametrize("name", sorted(set(PEERS) - {"best_fixed", "clairvoyant"}))
def test_a_fleet_of_one_and_a_second_run(name):
    peer = started(name, 1)
    assert serve(peer, 30, gap=1.0) == {0: 30}
    call = a_call()
    call.tried.append(0)
    assert peer.again(call, 40.0) == -1
    peer.start(fleet_of(3), 1)
    assert peer.own == [0] * 3 and serve(peer, 60, gap=1.0).total() == 60


def curve(tpot):
    return ServiceCurve(
        batch=(1, 8, 16, 32),
        tpot_ms=(tpot, 1.1 * tpot, 1.5 * tpot, 3 * tpot),
        ttft_ms=(50, 60, 90, 200),
        prompt_tok=500.0,
    )


@pytest.mark.parametrize("name", PEERS)
def test_in_the_real_fleet(name):
    "Errors, hangs, retries, hedges, rate limits: each request ends once, nothing stays in flight."
    sims = [
        SimBackend(b, curve(20.0 + 5 * i), observable=i % 2 == 0, queue=40)
        for i, b in enumerate(fleet_of(5))
    ]
    gates = [make_peer(name, **NEEDS.get(name, {})) for _ in range(2)]
    fleet = Fleet(sims, gates, seed=3, timeout_s=20.0, retries=3, hedge_s=6.0, staleness_s=2.0)
    fleet.at(10.0, lambda f, t: f.set(0, error_rate=0.5))
    fleet.at(20.0, lambda f, t: f.set(1, stuck_rate=0.2))
    fleet.at(30.0, lambda f, t: f.set(3, rpm=30))
    fleet.at(40.0, lambda f, t: f.set(4, down="refuse"))
    fleet.at(45.0, lambda f, t: f.kill(2))
    record = fleet.run(poisson(3.0, 900, seed=2).with_slo(2.5, 30.0))
    assert len(record) == 900 and all(g.own == [0] * 5 for g in gates)
    assert record.ok.mean() > (
        0.5
        if name in ("random", "round_robin", "best_fixed") or name.startswith("litellm")
        else 0.9
    )


# ---- names, parameters, grids


def test_unknown_names_and_parameters_are_refused():
    with pytest.raises(ValueError, match="unknown peer 'p3c'; known: random, "):
        make_peer("p3c")
    for name in PEERS:
        with pytest.raises(TypeError, match=f"peer '{name}'"):
            make_peer(name, **NEEDS.get(name, {}), nonsense=1)
    with pytest.raises(ValueError, match="tpot_ms lacks b1"):
        started("adaptive_least", 2, tpot_ms={"b0": 20.0})


def test_grids_hold_every_rival_plain_and_paced_within_natural_bounds():
    assert set(GRIDS) == set(PEERS) - set(UNTUNED)
    for name, points in GRIDS.items():
        plain = [p for p in points if not p.get("paced")]
        assert (
            points == plain
            if name in FROZEN
            else points == plain + [p | dict(paced=True) for p in plain]
        ), name
        for params in points:
            started(name, **params)
            numbers = {k: v for k, v in params.items() if type(v) in (int, float) and k in RANGES}
            assert all(RANGES[k][0] <= v <= RANGES[k][1] for k, v in numbers.items()), (
                name,
                params,
            )
    assert max(p["gamma"] for p in GRIDS["adaptive_least"]) >= 8
    assert GRIDS["adaptive_least_sharp"] == GRIDS["stream_least"] == [{}]


# ---- behaviour as published


def test_random_is_weighted_by_capacity():
    seen = serve(started("random", capacity=(1, 3)), 4000)
    assert abs(seen[1] / 4000 - 0.75) < 0.03


def test_round_robin_takes_turns_also_on_retries():
    peer = started("round_robin", 4)
    assert [attempt(peer, 0.0).place for _ in range(8)] == [0, 1, 2, 3] * 2
    call = a_call()
    call.tried[:] = [0, 2]
    assert {peer.again(call, 0.0) for _ in range(4)} == {1, 3}


def test_least_in_flight_fills_by_capacity_and_breaks_ties_at_random():
    assert held(started("least_in_flight", capacity=(2, 4, 6)), 120) == {0: 20, 1: 40, 2: 60}
    assert (
        len(
            {
                started("least_in_flight", capacity=(1, 1, 1), seed=s).send(a_call(), 0.0)
                for s in range(20)
            }
        )
        == 3
    )


def test_two_choices_flatten_the_tail_but_do_not_herd():
    blind, two = (
        max(held(started(n, capacity=[1] * 10), 1000).values()) for n in ("random", "p2c")
    )
    assert two <= 104 < blind
    idle = started("p2c", capacity=(1, 1, 1, 1))
    idle.own[:] = [0, 5, 5, 5]  # the only free one: drawn half the time
    n = 0
    for _ in range(2000):
        p = idle.send(a_call(), 0.0)
        idle.own[p] -= 1
        n += p == 0
    assert 0.45 < n / 2000 < 0.55


def test_slow_start_grows_with_time():
    shares = []
    for t in (0.0, 15.0, 30.0, 100.0):
        peer = started("p2c", capacity=(1, 1), slow_start_s=30.0)
        peer.returned(1, 0.0)
        shares.append(held(peer, 1000, t)[1] / 1000)
    assert shares[0] == pytest.approx(0.1 / 1.1, abs=0.01) and shares[1] == pytest.approx(
        1 / 3, abs=0.01
    )
    assert shares[2] == shares[3] == pytest.approx(0.5, abs=0.01)


def test_adaptive_least_follows_its_formula():
    rng, peer = (
        Random(3),
        started(
            "adaptive_least",
            capacity=(4, 8, 16),
            weight=0.2,
            gamma=1.5,
            tpot_ms={"b0": 10.0, "b1": 20.0, "b2": 40.0},
        ),
    )
    cap, speed, late, err = (4, 8, 16), (0.1, 0.05, 0.025), [None] * 3, [0.0] * 3
    for k in range(300):
        now = float(k)
        own = peer.own[:]
        known = [x for x in late if x is not None]
        guess = [x if x is not None else (sum(known) / len(known) if known else 1.0) for x in late]
        score = [
            (own[i] + 1) / (cap[i] * speed[i]) * guess[i] ** 1.5 * (1 + 4 * err[i])
            for i in range(3)
        ]
        job = attempt(peer, now, a_call(tokens_out=50.0 + rng.random() * 200, tokens_in=0.0))
        assert score[job.place] == pytest.approx(min(score))
        if rng.random() < 0.2:
            continue  # stays in flight
        ok, took, i = rng.random() < 0.9, rng.random() * 5, job.place
        peer.end(job, now + took, ok, None if ok else "error")
        err[i] += 0.2 * ((not ok) - err[i])
        if ok:
            x = took / job.call.tokens_out * speed[i]
            late[i] = x if late[i] is None else late[i] + 0.2 * (x - late[i])
    assert min(err) > 0


def test_adaptive_least_cools_down_after_five_errors_and_doubles():
    peer = started("adaptive_least", capacity=(1, 1), error=0.0)

    def fail(now, n):
        for _ in range(n):
            peer.own[0] += 1
            peer.end(Job(a_call(), 0, 0, now), now, False, "error")

    fail(0.0, 4)
    assert serve(peer, 1, 0.1)[0] == 1  # that success ends the row
    fail(1.0, 5)
    assert not serve(peer, 20, 2.0)[0] and held(peer, 2, 6.0)[0]  # out for 5 s
    fail(7.0, 1)
    assert 0 in peer.health.out and peer.health.out[0] == 17.0  # one is enough now, for 10 s


def test_time_outs_are_lower_bounds_and_errors_no_speed():
    for name, belief in (
        ("adaptive_least", lambda p: p.late[0]),
        ("c3", lambda p: p.r[0]),
        ("prequal", lambda p: p.mine[0] / 1000),
    ):
        peer = started(name, 1)
        peer.in_weight = inf
        serve(peer, 20, took=lambda p: 2.0)
        before = belief(peer)
        assert before == pytest.approx(0.02)
        serve(peer, 5, 10.0, took=lambda p: 0.001, error=lambda p: "error")
        assert belief(peer) == before, name
        serve(peer, 1, 20.0, took=lambda p: 1.0, error=lambda p: "timeout")
        assert belief(peer) == before, name
        serve(peer, 1, 30.0, took=lambda p: 60.0, error=lambda p: "timeout")
        assert belief(peer) > 1.5 * before, name


def test_peak_ewma_rises_at_once_and_decays():
    peer = started("peak_ewma", capacity=(1, 1))
    serve(peer, 1, 0.0, took=lambda p: 0.1)
    first = 0 if peer.cost[0] else 1
    peer.own[first] += 1
    peer.end(Job(a_call(), 0, first, 1.0), 4.0, True, None)
    assert peer.cost[first] == 3.0
    peer.own[first] += 1
    peer.end(Job(a_call(), 0, first, 13.5), 14.0, True, None)
    assert peer.cost[first] == pytest.approx(3 * exp(-1.0) + 0.5 * (1 - exp(-1.0)))
    peer.own[first] = 2
    assert peer.load(first, 24.0) == pytest.approx(peer.cost[first] * exp(-1.0) * 3)
    other = 1 - first
    peer.own[other] = 1
    assert peer.load(other, 24.0) > 1e11  # pending, never answered
    assert {peer.pick(a_call(), 24.0, [0, 1]) for _ in range(50)} == {first}


def test_finagle_sends_one_probe():
    peer = started("peak_ewma", capacity=(1, 1, 1))
    for _ in range(5):
        peer.own[2] += 1
        peer.end(Job(a_call(), 0, 2, 0.0), 0.0, False, "error")
    assert not held(peer, 50, 4.0)[2]
    probes = held(peer, 200, 6.0)[2]
    assert probes == 1
    peer.end(Job(a_call(), 0, 2, 6.0), 6.5, True, None)
    assert held(peer, 60, 7.0)[2] > 1


def test_finagle_waits_longer_each_time_with_jitter_and_frees_a_cancelled_probe():
    waits = []
    for seed in range(8):
        peer = started("peak_ewma", 2, seed=seed)
        serve_at(peer, 1, 5, "error")
        assert peer.health.out[1] == 5.0
        peer.own[1] += 1
        peer.health.sent(1, 5.0)
        assert peer.health.viable([0, 1], 5.0) == [0]
        peer.cancel(Job(a_call(), 0, 1, 5.0), 6.0)
        assert peer.health.viable([0, 1], 6.0) == [0, 1]
        peer.health.sent(1, 6.0)
        serve_at(peer, 1, 1, "error", 6.0)
        waits.append(peer.health.out[1] - 6.0)
    assert all(5 <= w <= 10 for w in waits) and len(set(waits)) == 8


def test_failures_from_before_the_death_do_not_bury_again():
    peer = started("peak_ewma", 2)
    serve_at(peer, 1, 5, "error", 10.0)
    peer.health.sent(1, 15.0)
    serve_at(peer, 1, 1, None, 15.0)
    assert not peer.health.out
    serve_at(peer, 1, 9, "error", 2.0, took=14.0)
    assert not peer.health.out  # sent at 2, given up at 16
    serve_at(peer, 1, 5, "error", 16.0)
    assert 1 in peer.health.out


def test_finagle_times_errors_unless_told_not_to():
    for errors in (True, False):
        peer = started("peak_ewma", 1, errors=errors)
        serve_at(peer, 0, 1, None, 0.0, 1.0)
        serve_at(peer, 0, 1, "error", 10.9, 0.1)
        assert (peer.cost[0] < 0.5) is errors


def test_prequal_hot_or_cold():
    peer = started("prequal", capacity=(8,) * 6, probes=6, pool=6, quantile=0.5, age_s=inf)

    def tick(rif, tpot):
        peer.probed.clear()
        peer.own[:] = [0] * 6
        peer.gauges.past.clear()
        peer.oldest_next = True
        peer.tick(1.0, tuple(Gauge(1.0, r, 0, t) for r, t in zip(rif, tpot)))

    tick((1, 2, 3, 20, 21, 22), (30, 20, 25, 5, 6, 7))
    assert peer.send(a_call(), 1.0) == 1  # hot ones are fast, but hot
    tick((1, 2, 20, 3, 21, 22), (30, 40, 25, 10, 6, 7))
    assert peer.send(a_call(), 1.0) == 3  # cold, least latency
    tick((5, 5, 5, 5, 5, 4), (30, 30, 30, 30, 30, 99))
    assert peer.send(a_call(), 1.0) != 5  # all cold: latency, not RIF, decides
    assert len(peer.probed) == 4  # one used up, one discarded
    old = started("prequal", capacity=(8,) * 6, probes=1, pool=6)
    old.send(a_call(), 0.0)
    old.send(a_call(), 0.5)
    old.send(a_call(), 9.0)
    assert all(x[2] == 9.0 for x in old.probed.values())  # probes older than 1 s are gone
    assert (
        started("prequal", 10).size == 5
        and started("prequal", 2).size == 2
        and started("prequal", 64).size == 16
    )


def test_prequal_sees_others_load_and_falls_back_for_opaque_backends():
    peer = started("prequal", capacity=(8, 8, 8, 8), probes=4, pool=4, quantile=0.5)
    peer.own[:] = [3, 0, 0, 6]
    peer.tick(1.0, (Gauge(1.0, 15.0, 0, 20.0), Gauge(1.0, 30.0, 2, 20.0), None, None))
    assert peer.others == [12.0, 32.0, 0.0, 0.0]  # own requests of that time are not others'
    peer.probe(1.0)
    assert {p: x[0] for p, x in peer.probed.items()} == {0: 15.0, 1: 32.0, 2: 0.0, 3: 6.0}


def test_late_gauges_are_corrected_by_own_counts_of_their_time():
    peer = started("prequal", 2)
    for t, n in ((1.0, 10), (2.0, 4), (3.0, 0)):
        peer.own[0] = n
        peer.tick(t, (None, None))
    peer.own[0] = 5
    peer.tick(4.0, (Gauge(1.0, 10.0, 0, 20.0), None))
    assert peer.others[0] == 0.0
    peer.tick(5.0, (Gauge(2.0, 10.0, 0, 20.0), None))
    assert peer.others[0] == 6.0


def test_c3_ranks_by_the_cube_of_the_queue():
    peer = started("c3", capacity=(1, 1), adjust=False, clients=3)
    peer.blank.clear()
    peer.r, peer.s, peer.q, peer.own = [0.5, 0.9], [0.2, 0.1], [1.0, 0.0], [1, 2]
    assert peer.rank(0) == pytest.approx(0.3 + 5**3 * 0.2) and peer.rank(1) == pytest.approx(
        0.8 + 7**3 * 0.1
    )
    assert peer.send(a_call(), 0.0) == 0
    peer.own = [2, 2]
    assert peer.send(a_call(), 0.0) == 1  # a fast server may queue longer
    peer.told[0], peer.waiting[0] = 4.0, 6
    peer.own[0] += 1
    peer.end(Job(a_call(tokens_in=0.0), 0, 0, 0.0), 1.0, True, None)
    assert (peer.r[0], peer.s[0], peer.q[0]) == pytest.approx(
        (0.5 + 0.3 * (0.01 - 0.5), 0.2 + 0.3 * (0.004 - 0.2), 1.0 + 0.3 * (6 - 1))
    )


def test_c3_of_elasticsearch_tries_the_losers_again():
    runs = {adjust: started("c3", capacity=(1, 1), adjust=adjust) for adjust in (True, False)}
    for peer in runs.values():
        serve(peer, 2, took=lambda p: (0.1, 50.0)[p])
    for peer in runs.values():
        peer.own[0] = 1  # one stays in flight at the faster
    assert (
        serve(runs[False], 100, took=lambda p: 0.1)[1]
        == 0
        < serve(runs[True], 100, took=lambda p: 0.1)[1]
    )


def test_envoy_ejects_at_five_in_a_row_for_thirty_seconds_times_the_ejections():
    peer = started("envoy", 4)
    assert serve(peer, 200, took=lambda p: 0.0, error=lambda p: "error" if p == 3 else None)[3] == 5
    for t in (10.0, 20.0):
        peer.tick(t, ())
    assert not held(peer, 60, 29.0)[3]
    peer.tick(30.0, ())
    peer.own[:] = [0] * 4
    assert held(peer, 60, 31.0)[3] > 5  # no half-open: all its traffic at once
    peer.own[:] = [0] * 4
    serve(peer, 200, 31.0, took=lambda p: 0.0, error=lambda p: "error" if p == 3 else None)
    assert peer.health.out[3] == 31.0 + 60.0


def test_envoy_compares_success_rates_only_among_five_busy_hosts():
    def sick(n, each, params={}):
        peer = started("envoy", n, **params)
        for p in range(n):
            for k in range(each):
                bad = p == 0 and k % 4 == 0
                peer.own[p] += 1
                peer.end(Job(a_call(), 0, p, 0.0), 0.1, not bad, "error" if bad else None)
        peer.tick(10.0, ())
        return set(peer.health.out)

    assert sick(6, 100) == {0}
    assert (
        sick(6, 99) == sick(4, 100, dict(sigmas=1.0)) == set() != sick(5, 100, dict(sigmas=1.0))
    )  # too few requests; too few hosts
    assert sick(6, 100, dict(max_ejected=0.1)) == set() and sick(
        6, 100, dict(max_ejected=0.1, always_one=True)
    ) == {0}


def test_envoy_has_no_latency_detector_and_no_opinion_of_429():
    slow = serve(
        started("envoy", capacity=(1,) * 5), 1000, gap=0.1, took=lambda p: 60.0 if p == 0 else 0.1
    )
    limited = serve(
        started("envoy", capacity=(1,) * 5),
        1000,
        gap=0.1,
        error=lambda p: "rate_limited" if p == 0 else None,
    )
    assert slow[0] > 150 and limited[0] > 150


def test_envoy_sweeps_as_often_as_told():
    assert started("envoy", 3).every_s == 10.0 and started("envoy", 3, every_s=7.0).every_s == 7.0


def test_envoy_panics_and_refuses_only_what_it_may():
    peer = started("envoy", 4, max_ejected=1.0)
    for p in (0, 1):
        serve_at(peer, p, 5, "error")
    assert set(held(peer, 100)) == {2, 3}
    call = a_call()
    call.tried[:] = [2, 3]
    assert peer.again(call, 0.0) == -1  # only ejected ones are left
    serve_at(peer, 2, 5, "error")
    assert set(held(peer, 400)) == {0, 1, 2, 3}  # one of four healthy: panic


def serve_at(peer, place, n, error=None, now=0.0, took=0.0):
    for _ in range(n):
        peer.own[place] += 1
        peer.end(Job(a_call(), 0, place, now), now + took, error is None, error)


def test_resilience4j_defaults_never_trip_on_latency_the_tuned_one_does():
    default, tuned = started("resilience4j", 3), started("resilience4j_tuned", 3)
    for peer in (default, tuned):
        serve_at(peer, 1, 300, took=20.0)  # four times its SLO
    assert held(default, 90)[1] > 0 == held(tuned, 90)[1]
    serve_at(default, 1, 100, took=60.1)
    assert not held(default, 90)[1]  # all slower than a minute


def test_resilience4j_failure_rate_and_refusal():
    peer = started("resilience4j", 2)
    serve_at(peer, 0, 50)
    serve_at(peer, 0, 49, "error")
    assert 0 not in peer.health.out
    serve_at(peer, 0, 1, "error")
    assert peer.health.out == {0: 60.0}  # 50 of 100
    serve_at(peer, 1, 100, "error")
    assert peer.send(a_call(), 59.0) == -1
    anyway = started("resilience4j", 1, refuse=False)
    serve_at(anyway, 0, 100, "error")
    assert anyway.send(a_call(), 1.0) == 0


def test_resilience4j_sticks_half_open_when_a_permitted_call_never_returns():
    for params, later in ((dict(), -1), (dict(max_half_open_s=30.0), 0)):
        peer = started("resilience4j", 1, **params)
        serve_at(peer, 0, 100, "error")
        jobs = [attempt(peer, 60.0) for _ in range(10)]
        assert all(jobs) and peer.send(a_call(), 60.0) == -1  # ten permissions, no more
        for job in jobs[1:]:
            peer.end(job, 61.0, True, None)
        assert peer.send(a_call(), 89.0) == -1  # nine are in: not judged
        peer.send(a_call(), 91.0)
        assert peer.send(a_call(), 1e5) == later


def test_resilience4j_judges_when_all_probes_are_in():
    for bad, state in ((4, False), (5, True)):
        peer = started("resilience4j", 1)
        serve_at(peer, 0, 100, "error")
        jobs = [attempt(peer, 60.0) for _ in range(10)]
        for k, job in enumerate(jobs):
            peer.end(job, 61.0, k >= bad, None if k >= bad else "error")
        assert (0 in peer.health.out) is state and not peer.health.half
    peer = started("resilience4j", 1)
    serve_at(peer, 0, 100, "error")
    jobs = [attempt(peer, 60.0) for _ in range(10)]
    peer.cancel(jobs[0], 61.0)
    assert peer.send(a_call(), 61.0) == 0  # a cancelled call gives its permission back


def test_litellm_window_stops_sliding_as_shipped():
    shipped, meant = started("litellm_as_shipped", 1), started("litellm", 1)
    for peer in (shipped, meant):
        serve_at(peer, 0, 10, took=1.0)
        serve_at(peer, 0, 500, took=50.0)
    assert meant.mean[0] == pytest.approx(0.5) and shipped.mean[0] == pytest.approx(
        (9 * 0.01 + 0.5) / 10
    )


def test_litellm_prefers_the_unknown_then_the_best_and_fears_time_outs():
    peer = started("litellm", 3)
    serve_at(peer, 0, 3, took=1.0)
    assert set(held(peer, 60)) == {1, 2}  # unknown counts as 0
    serve_at(peer, 1, 3, took=2.0)
    serve_at(peer, 2, 3, took=1.05)
    assert set(held(peer, 60)) == {0}
    serve_at(peer, 0, 1, "timeout")
    assert set(held(peer, 60, 1.0)) == {2} and peer.mean[0] > 250
    near = started("litellm", 2, buffer=0.1)
    serve_at(near, 0, 3, took=1.0)
    serve_at(near, 1, 3, took=1.05)
    assert set(held(near, 60)) == {0, 1}


def test_litellm_cools_down_for_five_seconds_and_refuses_when_all_do():
    peer = started("litellm", 2)
    serve_at(peer, 0, 1, "rate_limited")
    assert set(held(peer, 20, 4.0)) == {1}
    serve_at(peer, 1, 1, "rate_limited", 4.0)
    assert peer.send(a_call(), 4.5) == -1 and peer.send(a_call(), 5.0) == 0


def test_llmd_takes_the_least_positive_headroom_and_knows_no_future():
    def taught(**params):
        peer = started("llmd", capacity=(8, 8), explore=0.0, **params)
        for k in range(600):
            n = k % 30 + 1
            call = a_call(tokens_out=100.0, tokens_in=100.0 * (k % 7))
            call.memo = (0, n, 0, 0.0)
            job = Job(call, 0, 0, 0.0)
            job.ttft_s = 0.001 * call.tokens_in
            peer.own[0] = n
            peer.end(job, job.ttft_s + 100 * 0.01 * max(n / 8, 1.0), True, None)
        peer.own[0] = 0
        peer.tick(1.0, (None, None))
        return peer

    def split(peer, own, **kw):
        seen = Counter()
        for _ in range(300):
            peer.own[:] = own
            seen[peer.send(a_call(**kw), 1.0)] += 1
        return seen

    least, most = taught(), taught(strategy="most")
    model = least.model[0]
    assert model.table[20] == pytest.approx(0.025, rel=0.12)
    assert model.plane[1] == pytest.approx(1.0, rel=0.05)
    ask = dict(tokens_out=100.0, tokens_in=0.0, slo_s=2.0)
    assert split(least, [25, 4], **ask) == {1: 300}  # the first has none
    assert split(least, [12, 2], **ask)[0] > 180 > 60 > split(most, [12, 2], **ask)[0]
    # the prompt eats it up
    assert split(least, [12, 2], tokens_out=100.0, tokens_in=800.0, slo_s=2.0) == {1: 300}
    # nobody has any: least deficit
    assert split(least, [29, 20], tokens_out=100.0, tokens_in=0.0, slo_s=0.5)[1] > 280
    least.own[0] = 10_000
    # flat beyond what was seen, as trees are
    assert least.room_s(a_call(slo_s=9.0), 0) > 4 and model.table[-1] < 0.05


def test_best_fixed_uses_only_its_weights():
    peer = started("best_fixed", weights={"b1": 3.0, "b3": 1.0})
    seen = serve(peer, 4000)
    assert set(seen) == {1, 3} and abs(seen[1] / 4000 - 0.75) < 0.03
    call = a_call()
    call.tried[:] = [1]
    assert {peer.again(call, 0.0) for _ in range(20)} == {3}
    call.tried.append(3)
    assert peer.again(call, 0.0) == -1


def test_the_clairvoyant_moves_before_anything_fails():
    told = []

    def oracle(now):
        told.append(now)
        return (10.0, 10.0, 10.0) if now < 50 else (0.0, 10.0, 10.0)

    for how in ("least", "draw2", "draw3", "weighted", "cheapest"):
        peer = started("clairvoyant", capacity=(10, 10, 10), oracle=oracle, how=how, floor=1e-6)
        assert set(held(peer, 24, 49.0)) == {0, 1, 2}
        peer.own[:] = [0] * 3
        assert set(held(peer, 15, 50.0)) <= {1, 2}, how
    pair = started("clairvoyant", capacity=(10, 10), oracle=lambda now: (10.0, 10.0), how="draw2")
    pair.own[0] = 30
    assert held(pair, 29) == {1: 29}  # two candidates are two different ones
    told.clear()
    slow = started("clairvoyant", capacity=(1, 1, 1), oracle=oracle, every=1.0)
    held(slow, 10, 3.0)
    assert told == [3.0]
    with pytest.raises(ValueError, match="3 values for 2"):
        started("clairvoyant", 2, oracle=oracle).send(a_call(), 0.0)


def test_what_the_best_of_them_gain_in_a_fleet():
    """Other tenants take most of two backends: those who measure lose less than those who count,
    those who count less than the blind.
    """
    sims = [SimBackend(Backend(n, capacity=16), curve(25.0)) for n in "abcd"]

    def violations(name):
        def surge(f, now):
            f.set("a", others=40.0)
            f.set("b", others=40.0)

        fleet = Fleet(sims, [make_peer(name)], seed=1, timeout_s=60.0)
        fleet.at(60.0, surge)
        return fleet.run(poisson(4.0, 2000, seed=4).with_slo(2.5, 30.0)).violated.mean()

    blind, counting, measuring = map(violations, ("random", "p2c", "adaptive_least"))
    assert measuring < 0.5 * counting < 0.5 * blind


# ---- replicas come and go


@pytest.mark.parametrize(
    "name",
    [
        "random",
        "least_in_flight",
        "p2c",
        "adaptive_least",
        "best_fixed",
        "clairvoyant",
        "stream_least",
        "least_work_left",
        "exercise_rule",
    ],
)
def test_told_of_new_capacities_it_acts_on_them_and_not_on_the_first(name):
    """A backend that shrinks to a quarter gets as much as one that was so small from the start;
    fixed weights stay.
    """

    def share(first, later):
        peer = started(
            name,
            capacity=first,
            **{
                "best_fixed": dict(weights={"b0": 1.0, "b1": 1.0}),
                "clairvoyant": dict(oracle=lambda now: later),
            }.get(name, {}),
        )
        _tell(peer, [b / a for a, b in zip(first, later)])
        seen = held(peer, 2000)
        return seen[1] / 2000

    assert share((16.0, 16.0), (16.0, 4.0)) == pytest.approx(
        0.5 if name == "best_fixed" else share((16.0, 4.0), (16.0, 4.0)), abs=0.05
    )
    if name != "best_fixed":
        assert share((16.0, 16.0), (16.0, 4.0)) < 0.35


def test_a_contender_gets_what_its_world_knows():
    world = World(Setting("scheduled_surge", 1, n=500, gateways=4))
    assert {g.clients for g in contenders("c3", world, {}, {})} == {4} and contenders(
        "c3", world, dict(clients=2), {}
    )[0].clients == 2
    fixed = contenders("best_fixed", world, {}, {})[0].weights_by_name
    assert fixed.keys() == {b.name for b in world.backends} and all(
        0 < w < most for w, most in zip(fixed.values(), world.capacity)
    )
