"Router and policies: contracts over every policy, a state machine over the books, replay, threads, joins and leaves."
import asyncio
import gc
import sys
import tracemalloc
from collections import Counter, defaultdict, deque
from itertools import count
from math import inf, isfinite, nan
from random import Random
from threading import Thread
from types import BuiltinMethodType, FunctionType

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from scipy.stats import chisquare

from arcpoint_ce.routing.breaker import CLOSED, HALF_OPEN, OPEN, BreakerConfig, ShedConfig
from arcpoint_ce.routing.core import Backend, Forecast, ForecastTable, Outcome, Request, Tier
from arcpoint_ce.routing.policies import POLICIES, RandomChoice, Scene, Signals
from arcpoint_ce.routing.router import Drawn, NoBackend, Router, RouterConfig, only_slow

SPREAD = (.6, .7, .85, 1., 1.2, 1.5, 1.8)
SIZES = (2, 8, 64, 200)


def table(now, medians, version=1, max_age_s=60.):
    "Forecasts by backend; a median of None leaves the backend out."
    q = lambda m: tuple(m*x for x in SPREAD)
    return ForecastTable(version, now, max_age_s, {n: Forecast(n, now, 300., q(m), q(m)) for n, m in medians.items() if m is not None})


def scene_of(n, seed=0, missing=.2):
    "A mixed fleet: some forecasts missing, some backends shed, two prices, and own signals that differ."
    rng = Random(seed)
    p50 = [None if rng.random() < missing else rng.uniform(50, 500) for _ in range(n)]
    sc = Scene(tuple(Backend(f"b{k}", capacity=rng.choice((4., 8., 16.))) for k in range(n)), tuple(range(n)),
               tuple(rng.choice((1., 1., .3)) for _ in range(n)), tuple(p50),
               tuple(None if p is None else min(p/600, .99) for p in p50), tuple(p50),
               tuple(rng.choice((.001, .01)) for _ in range(n)), (300.,)*n)
    s = Signals([rng.randrange(6) for _ in range(n)], [rng.random()*.2 for _ in range(n)],
                [rng.choice((0., rng.uniform(50, 300))) for _ in range(n)], [rng.uniform(0, 10) for _ in range(n)], turn=seed)
    return sc, s


def same(x, y): return x == pytest.approx(y, abs=1e-9)


# ---- contracts over every policy

@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", POLICIES)
def test_probabilities_sum_to_one_and_match_the_draws(name, n):
    sc, s = scene_of(n, seed=n)
    plan, rng, draws = POLICIES[name]().plan(sc, s), Random(5), 200*n if n < 64 else 20_000
    p = plan.probabilities(s, 12.)
    assert len(p) == len(plan.scores(s, 12.)) == n and same(sum(p), 1.) and min(p) >= 0.
    seen = Counter(plan.choose(rng.random, s, 12.) for _ in range(draws))
    assert all(p[k] > 0 for k in seen), "drawn though its probability is 0"
    big = [k for k in range(n) if p[k]*draws >= 5]
    got, want = [seen[k] for k in big], [p[k]*draws for k in big]
    got.append(draws - sum(got)); want.append(draws - sum(want))
    if want[-1] < 5: got[-2:], want[-2:] = [sum(got[-2:])], [sum(want[-2:])]
    if len(got) == 1: assert got[0] == draws
    else: assert chisquare(got, [w*draws/sum(want) for w in want]).pvalue > 1e-4


@pytest.mark.parametrize("name", POLICIES)
def test_a_plan_of_nobody_and_of_one(name):
    sc, s = scene_of(1, missing=0.)
    plan = POLICIES[name]().plan(sc, s)
    assert plan.choose(Random(0).random, s, 1.) == 0 and plan.probabilities(s, 1.) == [1.]
    empty = POLICIES[name]().plan(Scene((), (), (), (), (), (), (), ()), Signals())
    assert empty.scores(Signals(), 0.) == [] or name == "least_in_flight"


BROKEN = {"missing": None, "nan": nan, "infinite": inf, "negative": -5., "zero": 0.}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("n", (2, 8, 64))
@pytest.mark.parametrize("name", POLICIES)
def test_a_broken_forecast_never_looks_best(name, n, how):
    "Equals but for their forecasts: who has none gets no more than the best known one, nor than if it had a good one."
    def ranked(median):
        r = Router([Backend(f"b{k}", capacity=8.) for k in range(n)], POLICIES[name](), config=RouterConfig(explore=0.))
        known = {f"b{k}": 80. + 500.*k/n for k in range(n - 1)}
        r.swap(table(0., {**known, f"b{n-1}": median}), 0.)
        assert r.decide(Request(), 1.).mode == "predictive"
        r = Router([Backend(f"b{k}", capacity=8.) for k in range(n)], POLICIES[name](), config=RouterConfig(explore=0.))
        r.swap(table(0., {**known, f"b{n-1}": median}), 0.)
        return {c.backend: c for c in r.rank(Request(), 1.)}
    got, good = ranked(BROKEN[how]), ranked(80.)
    me, others = got[f"b{n-1}"], [c for b, c in got.items() if b != f"b{n-1}"]
    assert me.p_slow is None and me.p50_ms is None and "no usable forecast" in me.reason
    assert me.probability <= good[f"b{n-1}"].probability + 1e-9
    if name != "round_robin": assert me.probability <= max(c.probability for c in others) + 1e-9
    if name == "predicted_cost": assert me.score >= min(c.score for c in others)


@pytest.mark.parametrize("name", POLICIES)
def test_a_stale_table_counts_for_nothing(name):
    "Neither its medians nor what it shed: odds are those of a router that never had it."
    def fleet(): return Router([Backend(f"b{k}", capacity=8.) for k in range(4)], POLICIES[name]())
    fresh, stale = fleet(), fleet()
    stale.swap(table(0., dict(b0=50., b1=900., b2=60., b3=None)), 0.)
    now = 61.
    odds = [{c.backend: (c.probability, c.score, c.p_slow) for c in r.rank(Request(), now)} for r in (fresh, stale)]
    assert odds[0] == odds[1] and stale.decide(Request(), now).mode == "reactive"


@pytest.mark.parametrize("n", (8, 64))
def test_ours_never_gives_everything_to_the_best_of_a_shared_score(n):
    "A forecast that favours one backend strongly, read by 1,000 gateways at once, must not trample it."
    fleet = [Backend(f"b{k}", capacity=8.) for k in range(n)]
    for medians in ({f"b{k}": 40. if k == 3 else 150. for k in range(n)}, {f"b{k}": 100. for k in range(n)}):
        seen = Counter()
        for seed in range(400):
            r = Router(fleet, config=RouterConfig(explore=0., seed=seed)); r.swap(table(0., medians), 0.)
            seen[r.decide(Request(), 1.).backend] += 1
        assert max(seen.values()) < 400*3/n and len(seen) >= n//2
    r = Router(fleet); r.swap(table(0., medians), 0.)
    assert max(c.probability for c in r.rank(Request(), 1.)) < 3/n


# ---- purity

def state(x, seen=None):
    "Everything an object holds, random state included, as plain comparable data."
    seen = {} if seen is None else seen
    if x is None or isinstance(x, (bool, int, str, bytes, bytearray)): return x
    if isinstance(x, float): return x if x == x else "nan"
    if id(x) in seen: return ("again", seen[id(x)][0])
    seen[id(x)] = (len(seen), x)       # kept alive, so that no id is used twice
    if isinstance(x, Random): return x.getstate()
    if isinstance(x, BuiltinMethodType): return state(x.__self__, seen)
    if isinstance(x, FunctionType) or "lock" in type(x).__name__.lower(): return type(x).__name__
    if isinstance(x, dict): return [(state(k, seen), state(v, seen)) for k, v in x.items()]
    if isinstance(x, (list, tuple, deque, set, frozenset)): return [state(v, seen) for v in x]
    names = [n for c in type(x).__mro__ for n in getattr(c, "__slots__", ())]
    return (type(x).__name__, [(n, state(getattr(x, n), seen)) for n in names if hasattr(x, n)],
            [(k, state(v, seen)) for k, v in getattr(x, "__dict__", {}).items()])


@pytest.mark.parametrize("name", POLICIES)
def test_rank_is_pure(name):
    r = Router([Backend(f"b{k}", capacity=4., rpm=60., tpm=9_000.) for k in range(5)], POLICIES[name](), breaker=SMALL)
    r.swap(table(0., dict(b0=50., b1=700., b2=80.)), 0.)
    for k in range(40):
        d = r.decide(Request(tokens_in=10), 1. + k); ok = d.backend != "b2"
        r.observe(Outcome(d.backend, d.at_s, 100., ok, None if ok else "refused", d.id))
    r.force("b3", OPEN, 41., "maintenance")
    before = state(r)
    for now in (41., 55., 200., 10.): list(map(str, r.rank(Request(tokens_in=500, model="m"), now))); r.rank(Request(), now)
    d = next(iter(r._leases.values()), None) or r.decide(Request(), 42.)
    before = state(r) if d.at_s == 42. else before
    d.reasons, d.fallbacks, d.probability, d._repr_html_(), repr(d), d.candidates
    assert state(r) == before


# ---- the books

SMALL = BreakerConfig(window=8, min_calls=4, consecutive=3, open_s=10., max_open_s=40., probes=2, probe_success=2, max_half_open_s=15.)
medians = st.sampled_from([None, nan, inf, 40., 100., 310., 900.])
NAMES = [f"b{k}" for k in range(6)]


class RouterMachine(RuleBasedStateMachine):
    "Any order of decisions, outcomes, people, joins and clocks; what must hold, holds after every call."

    @initialize(name=st.sampled_from(sorted(POLICIES)), n=st.integers(2, 5), rpm=st.sampled_from([None, 1., 4., 20.]),
                tpm=st.sampled_from([None, 500., 3_000.]), seed=st.integers(0, 3), explore=st.sampled_from([0., .2]))
    def start(self, name, n, rpm, tpm, seed, explore):
        config = RouterConfig(lease_s=30., explore=explore, probe_share=.5, slow_start_s=10., seed=seed)
        fleet = [Backend(NAMES[k], capacity=4.*(k + 1), rpm=rpm if k % 2 else None, tpm=None if k % 2 else tpm) for k in range(n)]
        self.make = lambda: Router(fleet, POLICIES[name](), config=config, breaker=SMALL, tiers=[Tier("gold", 200., .95)])
        self.r, self.log, self.now, self.peak, self.epoch = self.make(), [], 1000., 1000., 0
        self.attempts, self.spent, self.decisions = {}, defaultdict(lambda: [0, 0]), {}

    def do(self, name, *args):
        "One call, recorded with its result; leases may end by time only."
        before = {d.id: d.until_s for d in self.r._leases.values()}
        try: got = getattr(self.r, name)(*[self.decisions[a[0]] if type(a) is tuple else a for a in args])
        except NoBackend as e: got = e
        self.log.append((name, args, said(got)))
        for id, until in before.items():
            if id in self.r._leases: continue
            mine = [a for (i, _), a in self.attempts.items() if i == id]
            if name == "cancel" or all(not a["open"] for a in mine) or (name == "observe" and args[0].decision == id): continue
            assert until <= self.now, "a lease ended before its time"
            for a in mine: a["held"] = False
        return got

    def reserve(self, d, k):
        "Note what attempt `k` of a decision holds, and what it must not have been allowed to."
        lane = d.lanes[k]; b, probe = lane.breaker, bool(d.probes >> k & 1)
        mode = (d.again[k - 1][0] if k else d.view).mode
        assert b.state == CLOSED or (probe and b.state == HALF_OPEN) or (mode == "panic" and only_slow(b)), (b.state, mode)
        self.attempts[d.id, k] = dict(lane=lane, held=True, open=True, probe=probe, era=d.eras[k])
        use = self.spent[lane.backend.name, id(lane), self.epoch, self.now//60]
        use[0] += 1; use[1] += d.request.tokens_in + d.request.tokens_out
        if lane.backend.rpm: assert use[0] <= lane.backend.rpm, "rate limit exceeded: requests"
        if lane.backend.tpm: assert use[1] <= lane.backend.tpm, "rate limit exceeded: tokens"

    @rule(tokens=st.sampled_from([0, 10, 120, 400]), tier=st.sampled_from([None, "gold"]), cost=st.sampled_from([inf, 1.]))
    def decide(self, tokens, tier, cost):
        d = self.do("decide", Request(tokens_in=tokens, tokens_out=tokens//2, tier=tier, max_cost_usd=cost), self.now)
        if isinstance(d, NoBackend): return
        self.decisions[d.id] = d
        self.reserve(d, 0)
        assert 0 < d.probability <= 1 + 1e-9 and same(sum(c.probability for c in d.candidates), 1.) and d.reasons

    def pick(self, data, **want):
        keys = [k for k, a in self.attempts.items() if all(a[n] == v for n, v in want.items())]
        return data.draw(st.sampled_from(keys)) if keys else None

    @rule(data=st.data(), ok=st.sampled_from([True, True, False]), slow=st.booleans(), known=st.booleans())
    def observe(self, data, ok, slow, known):
        key = self.pick(data, open=True)
        if key is None: return
        a, d, lapsed = self.attempts[key], self.decisions[key[0]], key[0] in self.r._lapsed
        took = 900. if slow else 50.
        o = Outcome(a["lane"].backend.name, d.at_s, took if ok or slow else None, ok, None if ok else "timeout" if slow else "refused", *key)
        forgotten = key[0] not in self.r._leases and not lapsed
        late = self.r.counts["late"]
        assert self.do("observe", o) is not forgotten
        assert self.r.counts["late"] - late == (not forgotten and not a["held"])
        a["open"] = a["held"] = False

    @rule(data=st.data())
    def duplicate(self, data):
        key = self.pick(data, open=False)
        if key is None: return
        before, ignored = list(self.r._signals.in_flight), self.r.counts["ignored"]
        assert self.do("observe", Outcome(self.attempts[key]["lane"].backend.name, self.now, 10., decision=key[0], attempt=key[1])) is False
        assert self.r._signals.in_flight == before and self.r.counts["ignored"] == ignored + 1

    @rule(data=st.data())
    def orphan(self, data):
        name = data.draw(st.sampled_from([b.name for b in self.r.backends])) if self.r.backends else None
        assert self.do("observe", Outcome("nobody", self.now, 10., decision=10**9)) is False
        if name: assert self.do("observe", Outcome(name, self.now, 10.))

    @rule(data=st.data())
    def cancel(self, data):
        if not self.decisions: return
        id = data.draw(st.sampled_from(sorted(self.decisions)))
        if self.do("cancel", (id,), self.now):
            for (i, _), a in self.attempts.items():
                if i == id: a["held"] = a["open"] = False

    @rule(data=st.data())
    def retry(self, data):
        if not self.decisions: return
        d = self.decisions[data.draw(st.sampled_from(sorted(self.decisions)))]
        used = {l.backend.name for l in d.lanes}
        got = self.do("retry", (d.id,), self.now)
        if got is None: return
        assert got not in used and 0 < d.attempt_probability(d.attempts - 1) <= 1 + 1e-9
        self.reserve(d, d.attempts - 1)

    @rule(data=st.data(), age=st.sampled_from([0., 10., 70.]))
    def swap(self, data, age):
        said = {b.name: data.draw(medians) for b in self.r.backends}
        self.do("swap", table(self.now - age, said, len(self.log)), self.now)
        lanes = self.r._lanes.values(); total = sum(l.backend.capacity for l in lanes)
        assert sum((1 - l.weight)*l.backend.capacity for l in lanes) <= .5*total + 1e-9

    @rule(data=st.data(), state=st.sampled_from([OPEN, CLOSED, HALF_OPEN, None]))
    def force(self, data, state):
        if self.r.backends: self.do("force", data.draw(st.sampled_from([b.name for b in self.r.backends])), state, self.now, "by hand")

    @rule(name=st.sampled_from(NAMES), rpm=st.sampled_from([None, 3.]))
    def join_or_leave(self, name, rpm):
        if name in {b.name for b in self.r.backends}: self.do("remove", name)
        else: self.do("add", Backend(name, capacity=8., rpm=rpm), self.now)

    @rule(dt=st.sampled_from([0., .001, .4, 2., 9., 16., 31., 61., 400., -.5, -30., -59., -500.]))
    def clock(self, dt):
        self.now = max(self.now + dt, 0.)
        if self.now < self.peak - 60.: self.epoch += 1; self.peak = self.now
        self.peak = max(self.peak, self.now)

    @rule()
    def look(self):
        "Reading in between changes nothing; the replay below leaves it out."
        try: assert same(sum(c.probability for c in self.r.rank(Request(), self.now)), 1.)
        except NoBackend: pass

    @invariant()
    def books_balance(self):
        if not hasattr(self, "r"): return
        held = Counter()
        for a in self.attempts.values(): held[a["lane"].slot] += a["held"]
        assert self.r._signals.in_flight == [held[k] for k in range(len(self.r._signals.in_flight))]
        for l in self.r._lanes.values():
            assert 0 <= l.breaker.out <= SMALL.probes
            out = sum(a["held"] and a["probe"] and a["lane"] is l and a["era"] == l.breaker.era for a in self.attempts.values())
            if l.breaker.state == HALF_OPEN: assert out == l.breaker.out
            assert len(l.features.running) == sum(a["held"] and a["lane"] is l for a in self.attempts.values())

    def teardown(self):
        if not hasattr(self, "r"): return
        again, decisions = self.make(), {}
        for name, args, want in self.log:
            try: got = getattr(again, name)(*[decisions[a[0]] if type(a) is tuple else a for a in args])
            except NoBackend as e: got = e
            if isinstance(got, Drawn): decisions[got.id] = got
            assert said(got) == want
        assert state(again) == state(self.r)


def said(x):
    "What a call answered, comparable across routers."
    return (x.id, x.backend, x.probability, x.mode, x.is_probe) if isinstance(x, Drawn) else str(x)


TestRouterMachine = RouterMachine.TestCase
TestRouterMachine.settings = settings(max_examples=120, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))


# ---- what the machine found, or could find only by luck

def busy(n=3, **kw): return Router([Backend(f"b{k}", capacity=4.) for k in range(n)], **kw)


def test_retry_after_the_lease_releases_once():
    "An attempt whose lease had expired must not be released a second time when a retry revives its decision."
    r = busy(config=RouterConfig(lease_s=10.))
    d = r.decide(Request(), 0.); r.roll(11.)
    assert sum(r._signals.in_flight) == 0 and r.retry(d, 12.)
    assert r.observe(Outcome(d.lanes[0].backend.name, 0., 11_500., decision=d.id)) and sum(r._signals.in_flight) == 1
    assert r.cancel(d, 13.) and r._signals.in_flight == [0, 0, 0] and not r._leases and not r._lapsed


def test_a_straggler_does_not_write_into_its_successors_place():
    r = busy(1, config=RouterConfig(lease_s=10.))
    d = r.decide(Request(), 0.); r.remove("b0"); r.add(Backend("keeps", capacity=1.), 5.)
    assert len(r._signals.in_flight) == 2                                  # b0 still runs: its place is taken
    r.roll(11.); r.add(Backend("new", capacity=1.), 11.)
    assert r._lanes["new"].slot == 0                                       # expired: a newcomer gets the place
    assert r.observe(Outcome("b0", 0., 11_500., False, "timeout", d.id))
    assert (r._signals.error[0], r._signals.latency[0], r._signals.in_flight[0]) == (0., 0., 0)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_time_that_is_none_changes_nothing(bad):
    r = busy(); d = r.decide(Request(), 0.); view = dict(r._views)
    for call in (lambda: r.observe(Outcome(d.backend, bad, 5., decision=d.id)), lambda: r.decide(Request(), bad), lambda: r.retry(d, bad)):
        with pytest.raises((ValueError, OverflowError)): call()
        assert sum(r._signals.in_flight) == 1 and list(r._leases) == [d.id] and d.attempts == 1 and r.counts["observed"] == 0
    assert r.observe(Outcome(d.backend, 0., 5., decision=d.id))


def test_a_dead_ticker_sheds_no_longer_than_its_table_lives():
    r = busy(2, config=RouterConfig(explore=0.))
    r.swap(table(0., dict(b0=900., b1=50.)), 0.)
    share = lambda now: next(c.probability for c in r.rank(Request(), now) if c.backend == "b0")
    assert share(1.) < .1 and share(60.) < .1 and same(share(61.), .5)


def slow_down(r, name, now, n=10):
    for k in range(n): r.observe(Outcome(name, now + k/10, 5_000., True))


def test_in_a_panic_slow_backends_serve_and_dead_ones_do_not():
    r = busy(3, breaker=SMALL)
    for n in ("b0", "b1"): slow_down(r, n, 0.)
    for k in range(3): r.observe(Outcome("b2", 1., None, False, "refused"))
    assert {b.state for b in (l.breaker for l in r._lanes.values())} == {OPEN}
    seen = [r.decide(Request(), 6.5) for _ in range(60)]
    assert {d.backend for d in seen} == {"b0", "b1"} and {d.mode for d in seen} == {"panic"} and not any(d.is_probe for d in seen)
    later = [r.decide(Request(), 30.) for _ in range(60)]                 # waits are over: on trial they go on serving
    assert {d.backend for d in later} >= {"b0", "b1"} and sum(d.is_probe for d in later if d.backend == "b0") == SMALL.probes
    assert sum(d.backend == "b2" for d in later) <= SMALL.probes and all(d.is_probe for d in later if d.backend == "b2")
    r.force("b0", OPEN, 31., "maintenance"); r.force("b1", OPEN, 31., "maintenance")
    with pytest.raises(NoBackend, match="maintenance"): [r.decide(Request(), 31.) for _ in range(5)]


def test_a_trial_gets_its_probes_and_no_call_more():
    r = busy(4, breaker=SMALL, config=RouterConfig(probe_share=.5))
    for k in range(3): r.observe(Outcome("b0", 1., None, False, "refused"))
    seen = [d for d in (r.decide(Request(), 30. + k/1e4) for k in range(200)) if d.backend == "b0"]
    assert len(seen) == SMALL.probes == r._lanes["b0"].breaker.out and all(d.is_probe for d in seen)
    assert r.cancel(seen[0], 30.1) and sum(r.decide(Request(), 30.1).backend == "b0" for _ in range(100)) == 1


def test_a_panic_concerns_those_that_could_serve():
    "One slow model in a healthy fleet: its requests have nowhere else to go, everybody else's go on as usual."
    r = Router([Backend("big", models=("l",)), *(Backend(f"s{k}", models=("s",), capacity=9.) for k in range(5))], breaker=SMALL)
    slow_down(r, "big", 0.)
    assert r._lanes["big"].breaker.state == OPEN
    assert (r.decide(Request(model="l"), 2.).backend, r.decide(Request(model="l"), 2.).mode) == ("big", "panic")
    assert r.decide(Request(model="s"), 2.).mode == "reactive"


def test_views_are_not_remade_for_every_request():
    "Also while a breaker is on trial and idle, in a panic, and beside a spent rate limit."
    made = []
    class Counting(RandomChoice):
        def plan(self, scene, s): made.append(1); return super().plan(scene, s)
    for what in ("trial", "panic", "limit", "tokens"):
        r = Router([Backend(f"b{k}", rpm=60. if what == "limit" and not k else None, tpm=60_000. if what == "tokens" else None)
                    for k in range(4)], Counting(), breaker=SMALL)
        if what == "panic":
            for k in range(3): slow_down(r, f"b{k}", 0.)
        if what == "trial":
            for k in range(3): r.observe(Outcome("b0", 0., None, False, "refused"))
        made.clear()
        for k in range(300): d = r.decide(Request(tokens_in=20, tokens_out=5), 60. + k/1000); r.cancel(d, 60. + k/1000) if k > 20 else None
        assert len(made) <= 40, (what, len(made))


def test_a_clock_that_jumps_back_does_no_harm():
    r = Router([Backend("a", rpm=60.), Backend("b", rpm=60.)])
    with pytest.raises(NoBackend, match="rate limit"): [r.decide(Request(), 1e9 - 40) for _ in range(7)]
    assert r.decide(Request(), 1000.).at_s == 1000.                        # the future was a mistake: no wait for it
    r = Router([Backend("a"), Backend("b")]); r.decide(Request(), 1e9 - 40)
    r.add(Backend("c"), 1000.)
    r.decide(Request(), 1000.); first = r._views[None, None, None, None, 0.]
    r.decide(Request(), 990.)
    assert r._views[None, None, None, None, 0.] is not first                   # a view from the future is not used


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([10, 100, 400, 900]), st.floats(0., 8.)), min_size=5, max_size=80), st.sampled_from([1., 3., 30.]), st.sampled_from([1_000., 5_000.]))
def test_rate_limits_hold_in_every_minute(asks, rpm, tpm):
    r, used = Router([Backend("a", rpm=rpm, tpm=tpm), Backend("b", tpm=tpm)]), defaultdict(lambda: [0, 0])
    now = 0.
    for tokens, dt in asks:
        now += dt
        try: d = r.decide(Request(tokens_in=tokens), now)
        except NoBackend: continue
        use = used[d.backend, now//60]; use[0] += 1; use[1] += tokens
        assert use[1] <= tpm and (d.backend == "b" or use[0] <= rpm)
    with pytest.raises(NoBackend, match="per minute"): r.decide(Request(tokens_in=6_000), now)


def test_rate_limits_let_the_whole_budget_through():
    r, served = Router([Backend("a", rpm=60., tpm=6_000.)]), 0
    for k in range(600):
        try: r.decide(Request(tokens_in=100), 60. + k/10); served += 1
        except NoBackend: pass
    assert served == 60


def test_retries_are_drawn_too_with_the_odds_they_claim():
    "An outage must not send every retry to one place; and the propensity of a retry is that of its own draw."
    r = Router([Backend(f"b{k}", capacity=8.) for k in range(6)], config=RouterConfig(explore=.1))
    r.swap(table(0., {f"b{k}": 60. + 20*k for k in range(6)}), 0.)
    seen, want = Counter(), Counter()
    for _ in range(6_000):
        d = r.decide(Request(), 1.); second = r.retry(d, 1.)
        view, place, known, at = d.again[0]; signals = Signals(*known)
        for i, l in enumerate(view.lanes): want[l.backend.name] += ((1 - view.explore)*view.plan.probabilities(signals, at)[i] + view.explore/5)
        assert view.lanes[place].backend.name == second != d.backend and 0 < d.attempt_probability(1) < .9
        seen[second] += 1; r.cancel(d, 1.)
    assert len(seen) == 6 and chisquare([seen[k] for k in sorted(seen)], [want[k] for k in sorted(seen)]).pvalue > 1e-3
    assert d.attempt_probability(0) == d.probability


def test_a_decisions_probability_is_that_of_its_draw():
    "Probes, exploration and policy together, over many routers in the same state."
    def seeded(seed):
        r = Router([Backend(f"b{k}", capacity=4.*(k + 1)) for k in range(4)], breaker=SMALL, config=RouterConfig(explore=.1, probe_share=.3, seed=seed))
        r.swap(table(0., dict(b0=60., b1=90., b2=250., b3=None)), 0.)
        for k in range(3): r.observe(Outcome("b0", 1., None, False, "refused"))
        return r
    odds = {c.backend: c.probability for c in seeded(0).rank(Request(), 30.)}
    seen = Counter()
    for seed in range(3_000):
        d = seeded(seed).decide(Request(), 30.); seen[d.backend] += 1
        assert same(d.probability, odds[d.backend])
    assert chisquare([seen[b] for b in odds], [3_000*p for p in odds.values()]).pvalue > 1e-3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(medians, min_size=5, max_size=5), min_size=1, max_size=8), st.lists(st.sampled_from([1., 4., 20.]), min_size=5, max_size=5),
       st.sampled_from(["threshold", "predicted_cost"]), st.sampled_from([.3, .5]), st.sampled_from([1., 10.]))
def test_a_forecast_alone_takes_no_more_than_the_cap(tables, capacity, name, cap, lift):
    r = Router([Backend(f"b{k}", capacity=c) for k, c in enumerate(capacity)], POLICIES[name](), config=RouterConfig(explore=0.), shed=ShedConfig(cap=cap, lift=lift))
    for k, ms in enumerate(tables):
        r.swap(table(60.*k, {f"b{i}": m for i, m in enumerate(ms)}, k), 60.*k)
        lanes = r._lanes.values()
        assert sum((1 - l.weight)*l.backend.capacity for l in lanes) <= cap*sum(capacity) + 1e-9
        assert all(l.breaker.state == CLOSED for l in lanes) and all(l.weight >= .02 for l in lanes)
        if name == "threshold":
            avoided = [c for c in r.rank(Request(), 60.*k + 1) if c.probability < 1e-9]
            gone = sum((1 - r._lanes[c.backend].weight if c not in avoided else 1.)*r._lanes[c.backend].backend.capacity for c in r.rank(Request(), 60.*k + 1))
            assert gone <= .5*sum(capacity) + 1e-6


def test_outcomes_late_double_and_orphaned():
    r = busy(config=RouterConfig(lease_s=10.))
    d, twice, lost = (r.decide(Request(), 0.) for _ in range(3))
    assert r.observe(Outcome(twice.backend, 0., 50., decision=twice.id)) and not r.observe(Outcome(twice.backend, 0., 50., decision=twice.id))
    assert not r.observe(Outcome("b0", 0., 50., decision=999)) and not r.observe(Outcome(d.backend, 0., 50., decision=d.id, attempt=7))
    with pytest.raises(ValueError, match="ran on"): r.observe(Outcome("zz", 0., 50., decision=d.id))
    with pytest.raises(ValueError, match="not in the fleet"): r.observe(Outcome("zz", 0., 50.))
    r.roll(10.)
    assert (r.counts["expired"], sum(r._signals.in_flight)) == (2, 0)
    assert r.observe(Outcome(d.backend, 0., 11_000., decision=d.id)) and not r.observe(Outcome(d.backend, 0., 11_000., decision=d.id))
    assert not r.cancel(lost, 12.)
    assert r.counts == dict(decided=3, observed=2, cancelled=0, expired=2, late=1, ignored=4)


# ---- threads, tasks, members

def balanced(r):
    assert set(r._signals.in_flight) <= {0} and not r._leases
    for l in r._lanes.values(): assert l.breaker.out == 0 and not l.features.running


def hammer(r, clock, seed, calls, tally):
    rng, open_ = Random(seed), []
    for _ in range(calls):
        now = next(clock)*1e-3
        try: d = r.decide(Request(tokens_in=10), now)
        except NoBackend: tally["none"] += 1; continue
        tally["decided"] += 1
        if rng.random() < .2: r.retry(d, now)
        open_.append(d)
        if rng.random() < .05: r.swap(table(now, {b.name: rng.uniform(50, 600) for b in r.backends}), now)
        if len(open_) > rng.randrange(8) or _ == calls - 1:
            for d in open_:
                if rng.random() < .1: tally["cancelled"] += r.cancel(d, now); continue
                for k, lane in enumerate(d.lanes):
                    ok = rng.random() > .05      # seldom enough that not all six are shut off at once
                    tally["observed"] += r.observe(Outcome(lane.backend.name, d.at_s, max(now - d.at_s, 0.)*1000, ok, None if ok else "refused", d.id, k))
            open_.clear()
    for d in open_: tally["cancelled"] += r.cancel(d, next(clock)*1e-3)


def test_eight_threads_leave_the_books_balanced():
    r, clock, tallies, pause = busy(6, breaker=SMALL), count(1), [Counter() for _ in range(8)], sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [Thread(target=hammer, args=(r, clock, k, 400, tallies[k])) for k in range(8)]
        for t in threads: t.start()
        for t in threads: t.join()
    finally: sys.setswitchinterval(pause)
    total = sum(tallies, Counter())
    balanced(r)
    assert total["decided"] > 1_000
    assert {k: r.counts[k] for k in ("decided", "observed", "cancelled")} == {k: total[k] for k in ("decided", "observed", "cancelled")}
    assert r.counts["expired"] == r.counts["ignored"] == 0


def test_asyncio_tasks_may_share_a_router():
    r, rng = busy(4), Random(0)
    async def call(k):
        d = r.decide(Request(), k*1e-3)
        try: await asyncio.sleep(rng.random()*.01)
        except asyncio.CancelledError: r.cancel(d, 1.); raise
        r.observe(Outcome(d.backend, d.at_s, 5., decision=d.id))
    async def main():
        tasks = [asyncio.create_task(call(k)) for k in range(300)]
        await asyncio.sleep(.003)
        for t in tasks[::7]: t.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)
    ends = asyncio.run(main())
    balanced(r)
    gone = sum(isinstance(e, asyncio.CancelledError) for e in ends)
    assert gone > 0 and r.counts["observed"] == 300 - gone and r.counts["cancelled"] <= gone


def test_hundreds_join_and_leave_and_memory_stays_flat():
    r, rng, now, ids = busy(4), Random(1), 0., count()
    def churn(rounds):
        nonlocal now
        for _ in range(rounds):
            names = [f"x{next(ids)}" for _ in range(10)]
            for n in names: r.add(Backend(n), now)
            open_ = []
            for _ in range(60):
                now += .5; open_.append(r.decide(Request(model=rng.choice("abc")), now))
            for d in open_[:-5]: r.observe(Outcome(d.backend, d.at_s, 400., decision=d.id))
            for n in names: r.remove(n)
            for d in open_[-5:]: r.observe(Outcome(d.backend, d.at_s, 400., decision=d.id))
            r.swap(table(now, {b.name: 100. for b in r.backends}), now); r.roll(now)
    churn(70)                          # windows are full after 30 steps
    tracemalloc.start()
    try:
        churn(5); gc.collect(); before = tracemalloc.get_traced_memory()[0]
        churn(30); gc.collect(); grown = tracemalloc.get_traced_memory()[0] - before
    finally: tracemalloc.stop()
    assert grown < 60_000 and len(r._signals.in_flight) <= 4 + 2*10 and len(r._retired) <= 10 and len(r.shedder.holds) == 4
    balanced(r)


def test_two_hundred_backends():
    r = Router([Backend(f"b{k}", capacity=4.) for k in range(200)])
    r.swap(table(0., {f"b{k}": 60. + k for k in range(200)}), 0.)
    seen = Counter(r.decide(Request(), 1. + k/1000).backend for k in range(3_000))
    assert len(seen) > 150 and max(seen.values()) < 60
    assert len(r.rank(Request(), 5.)) == 200 and isfinite(r.decide(Request(), 5.).probability)


def fail(r, name, now, error="error", sent=None):
    r.observe(Outcome(name, now if sent is None else sent, 0. if sent is None else (now - sent)*1000., False, error))


def test_who_says_that_its_limit_is_spent_gets_nothing_until_the_next_minute():
    r = busy(2); fail(r, "b0", 70., "rate_limited")
    assert {brief(r, 70. + k*.4).backend for k in range(120)} == {"b1"}
    assert "rate limit" in next(c.reason for c in r.rank(Request(), 100.) if c.backend == "b0")
    assert {r.decide(Request(), 121. + k*.1).backend for k in range(40)} == {"b0", "b1"}


def test_errors_that_nothing_confirms_are_forgotten():
    r = busy(2, config=RouterConfig(forget_s=60.)); fail(r, "b0", 1.); rate = lambda: r.status(1.)[0]["error_rate"]
    first = rate()
    for t in range(1, 123, 2): brief(r, float(t))
    assert first == pytest.approx(.1) and rate() == pytest.approx(.1*2.718281828**-2, rel=.1)


def test_a_trial_that_ends_well_ends_the_error_rate():
    r = busy(2, breaker=BreakerConfig(open_s=1., jitter=0., probes=1, probe_success=1))
    for k in range(5): fail(r, "b0", 1. + k/10)
    assert r.status(2.)[0]["state"] == OPEN and r.status(2.)[0]["error_rate"] > .4
    for k in range(200):
        d = r.decide(Request(), 5. + k/100)
        if d.is_probe: break
    r.observe(Outcome("b0", d.at_s, 10., decision=d.id))
    assert r.status(8.)[0]["state"] == CLOSED and r.status(8.)[0]["error_rate"] == 0.


def brief(r, now):
    "A request that is over at once."
    d = r.decide(Request(), now); r.cancel(d, now)
    return d


def head_room(now, **rooms):
    return ForecastTable(1, now, 1e9, {n: Forecast(n, now, 1e6, (1.,)*7, (1.,)*7, None, held, most) for n, (held, most) in rooms.items()})


@pytest.mark.parametrize("held, waits", [(0., True), (9., False)])
def test_probes_wait_while_others_have_room(held, waits):
    r = busy(2, breaker=BreakerConfig(open_s=1., max_open_s=1., patient_s=50., backoff=100., jitter=0., probes=1))
    r.swap(head_room(0., b0=(0., 10.), b1=(held, 10.)), 0.)
    for k in range(5): fail(r, "b0", 1. + k/10)
    r.health("b0", 2.5); d = next(d for d in (r.decide(Request(), 2.5 + k/1000) for k in range(500)) if d.is_probe or not r.cancel(d, 2.6))   # the first wait is short for all
    r.observe(Outcome("b0", d.at_s, 0., False, "error", decision=d.id)); opened = d.at_s
    early = [brief(r, opened + 2. + k/1000).is_probe for k in range(300)]
    assert any(early) is not waits
    assert any(brief(r, opened + 51. + k/1000).is_probe for k in range(300))


def full(r, n=3, occupied=10., most=10.):
    r.swap(ForecastTable(1, 0., 600., {f"b{k}": Forecast(f"b{k}", 0., 600., (1.,)*7, (1.,)*7, None, occupied=occupied, most=most) for k in range(n)}), 0.)


def refusing(callers_retry=True, took_ms=5., served=True, **of_others):
    r = busy(config=RouterConfig(explore=0., callers_retry=callers_retry, slo_ms=300.)); full(r, **of_others)
    if served: r.observe(Outcome("b0", 0., 5., True))
    for k in range(5): r.observe(Outcome("b0", .1*k, took_ms, False, "500"))
    return r


def test_what_fails_at_once_is_tried_where_others_are_full_and_as_often_as_said():
    r, seen = refusing(), Counter()
    said = {c.backend: c.probability for c in r.rank(Request(), 1.)}
    for _ in range(3000): d = r.decide(Request(), 1.); seen[d.backend] += 1; r.cancel(d, 1.)
    assert said["b0"] == pytest.approx(.95) and said["b1"] > 0 and same(sum(said.values()), 1.)
    for n, p in said.items(): assert abs(seen[n]/3000 - p) < .04


@pytest.mark.parametrize("occupied, chance", [(10., .95), (3., 0.)])
def test_what_fails_at_once_is_tried_first_before_its_breaker_opens_if_old_answers_come_in_between(occupied, chance):
    r = busy(config=RouterConfig(explore=0., callers_retry=True, slo_ms=300.), breaker=BreakerConfig(failure_rate=1.)); full(r, occupied=occupied)
    for k in range(30): r.observe(Outcome("b0", .02*k, 5., k % 3 == 0, None if k % 3 == 0 else "500"))
    said = {c.backend: c.probability for c in r.rank(Request(), 1.)}
    assert r.health("b0", 1.)[0] == "closed" and same(sum(said.values()), 1.)
    assert said["b0"] == pytest.approx(chance)


@pytest.mark.parametrize("how", [dict(callers_retry=False), dict(took_ms=5_000.), dict(took_ms=None), dict(occupied=0.), dict(served=False)], ids=str)
def test_else_what_is_shut_off_gets_nothing(how):
    assert {c.backend: c.probability for c in refusing(**how).rank(Request(), 1.)}["b0"] == 0.


def test_what_begins_to_hang_swallows_no_more_than_it_could_hold():
    r = refusing()
    for k in range(500): r.decide(Request(), 1. + k/1000)
    assert r.in_flight()["b0"] == 4
    assert {c.backend: c.probability for c in r.rank(Request(), 1.6)}["b0"] == 0. and same(sum(c.probability for c in r.rank(Request(), 1.6)), 1.)


def test_room_that_nobody_has_divides_nothing():
    r = refusing(occupied=0., most=0.)
    assert same(sum(c.probability for c in r.rank(Request(), 1.)), 1.)
    with pytest.raises(ValueError, match="gateways"): RouterConfig(gateways=0)
